from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog

from shared.protocol.requests import Level
from shared.runtime import configure_logging
from shared.runtime._logs import change_level


@pytest.fixture(autouse=True)
def _logging_as_found() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line, type=dict[str, Any]) for line in capfd.readouterr().out.splitlines()]


def test_a_log_line_is_json_with_the_fixed_keys_first(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("fabric")
    structlog.get_logger().info("lease.opened", extra=1, token=7, port="0000:3b:00.0", lease="l1", host="lab")
    (line,) = lines(capfd)
    assert list(line) == ["at", "level", "service", "event", "host", "port", "lease", "token", "extra"]
    assert line["service"] == "fabric"


def test_the_ready_line_is_spelt_as_supervisors_look_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("fabric")
    structlog.get_logger().info("ready")
    assert '"event":"ready"' in capfd.readouterr().out


def test_what_is_below_the_level_is_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("fabric", "warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(capfd)] == ["loud"]


def test_a_traceback_is_data_on_the_same_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("fabric")
    try:
        int("broken")
    except ValueError as error:
        structlog.get_logger().error("crashed", exc_info=error)
    (line,) = lines(capfd)
    assert line["exception"][0]["exc_type"] == "ValueError"


def test_what_libraries_log_comes_out_in_the_same_form(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("fabric")
    logging.getLogger("asyncio").error("Task exception was never %s", "retrieved")
    logging.getLogger("nats.aio.client").warning("chatter")
    (line,) = lines(capfd)
    assert (line["event"], line["logger"]) == ("Task exception was never retrieved", "asyncio")


def test_a_value_that_json_does_not_know_is_written_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("fabric")
    structlog.get_logger().info("odd", value=object)
    assert "object" in lines(capfd)[0]["value"]


def test_a_level_that_is_changed_holds_at_once_also_for_loggers_that_are_bound_and_in_use(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("fabric")
    loose, bound = structlog.get_logger(), structlog.get_logger().bind(host="lab")
    for logger in (loose, bound):
        logger.info("in use")
        logger.debug("quiet")
    assert change_level(Level.DEBUG) is Level.INFO
    for logger in (loose, bound):
        logger.debug("loud")
    assert change_level(Level.ERROR) is Level.DEBUG
    for logger in (loose, bound):
        logger.warning("quiet again")
    assert [line["event"] for line in lines(capfd)] == ["in use", "in use", "loud", "loud"]
