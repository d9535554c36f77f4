"""The `holdfast` command as a process of its own: what an operator and a script see."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.integration.fleet import Bench

COMMAND_S: Final = 60.0


class Cli:
    """Runs `holdfast` against one bench, or against none."""

    def __init__(
        self, bench: Bench | None = None, environment: Mapping[str, str] | None = None, *, user: str = "operator"
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        of_bench = {"HOLDFAST_NATS_URL": bench.fleet.url, "HOLDFAST_HOST": bench.host} if bench is not None else {}
        of_bench |= bench.fleet.access(user) if bench is not None else {}
        self.environment = {**inherited, **of_bench, **(environment or {})}

    async def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.console",
            *arguments,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run to the end; return exit code, stdout and stderr."""
        return await ended(await self.start(*arguments))

    async def json(self, *arguments: str) -> Any:
        code, out, err = await self.run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Wait for the end of a command; return exit code, stdout and stderr."""
    out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def exists(path: Path) -> bool | None:
    """Look for what a command under test leaves on the disk; for `Bench.eventually`."""
    return True if path.exists() else None  # noqa: ASYNC240 - a test may look at the disk
