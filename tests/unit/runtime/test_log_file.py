"""The log in a file: the same lines, one writer, rotated, and no service ended by a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from shared.runtime import Fatal, Settings, configure_logging
from shared.runtime import _log_file as module
from shared.runtime._log_file import log_file
from tests.unit.runtime.test_logs import lines


@pytest.fixture(autouse=True)
def _logging_as_found() -> Iterator[None]:
    yield
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, module.LogFile):
            processor._handler.close()
    structlog.reset_defaults()


def test_the_file_gets_what_stdout_gets(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "fabric.log"
    configure_logging("fabric", "info", file)
    structlog.get_logger().info("lease.opened", lease="l1")
    structlog.get_logger().debug("not written")
    assert [msgspec.json.decode(line) for line in file.read_text().splitlines()] == lines(capfd)
    assert file.stat().st_mode & 0o007 == 0, "lines name tokens"


def test_a_file_that_has_grown_is_rotated_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 1000)
    configure_logging("fabric", "info", tmp_path / "fabric.log")
    for number in range(200):
        structlog.get_logger().info("line", number=number)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["fabric.log", *(f"fabric.log.{number}" for number in range(1, module.FILES_KEPT + 1))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    last = (tmp_path / "fabric.log").read_text().splitlines()[-1]
    assert msgspec.json.decode(last)["number"] == 199


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    configure_logging("fabric", "info", tmp_path / "fabric.log")
    with pytest.raises(Fatal, match=r"another process writes the log.*HOLDFAST_INSTANCE") as caught:
        configure_logging("fabric", "info", tmp_path / "fabric.log")
    assert caught.value.code == os.EX_IOERR


def test_a_directory_that_cannot_be_written_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "logs" / "fabric.log"
    with pytest.raises(Fatal, match=rf"{path} .*HOLDFAST_LOG_DIR") as caught:
        configure_logging("fabric", "info", path)
    assert caught.value.code == os.EX_IOERR


def test_a_full_disk_costs_lines_and_is_said_once_until_there_is_room_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    configure_logging("fabric", "info", tmp_path / "fabric.log")
    for _ in range(2):
        with monkeypatch.context() as disk:
            disk.setattr(module._OwnFile, "shouldRollover", full)
            structlog.get_logger().info("lost")
            structlog.get_logger().info("lost")
        structlog.get_logger().info("kept")
    assert [line["event"] for line in lines(capfd)] == ["log file not written", "lost", "lost", "kept"] * 2
    written = [msgspec.json.decode(line)["event"] for line in (tmp_path / "fabric.log").read_text().splitlines()]
    assert written == ["kept", "kept"]


@pytest.mark.parametrize(
    ("instance", "name"),
    [(f"aer-{os.getpid()}", "aer.log"), ("aer-east", "aer-east.log"), ("east", "aer-east.log")],
    ids=["unnamed", "with the service's name", "without"],
)
def test_an_instance_that_was_given_a_name_has_a_file_of_its_own(tmp_path: Path, instance: str, name: str) -> None:
    assert log_file("aer", Settings(log_dir=tmp_path, instance=instance)) == tmp_path / name


def test_without_a_directory_there_is_no_file() -> None:
    assert log_file("aer", Settings(instance="aer-1")) is None
