"""The container engine and compose, as commands; and whether they are here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

COMMAND_S: Final = 60.0
_PULL_S: Final = 300.0


def missing() -> str | None:
    """Say what keeps these tests from being run here; None if nothing does."""
    if shutil.which("docker") is None:
        return "there is no docker here"
    if subprocess.run(["docker", "info"], capture_output=True, timeout=COMMAND_S, check=False).returncode != 0:
        return "the docker engine does not answer; start it (dockerd)"
    return None if compose() else "there is neither docker-compose nor `docker compose` here"


def compose() -> tuple[str, ...] | None:
    """Return the command of compose: version 1 or 2, whichever is here."""
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    probe = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=COMMAND_S, check=False)
    return ("docker", "compose") if probe.returncode == 0 else None


def docker(*arguments: str, stdin: bytes | None = None, timeout_s: float = COMMAND_S) -> str:
    """Run a docker command; return what it prints. Raises AssertionError with what it complains of."""
    ended = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, timeout=timeout_s, check=False)
    assert ended.returncode == 0, f"docker {' '.join(arguments)}: {ended.stderr.decode()}{ended.stdout.decode()}"
    return ended.stdout.decode()


def inspect(name: str) -> Any:
    """Return what the engine knows of a container or an image."""
    (found,) = json.loads(docker("inspect", name))
    return found


def have_image(name: str) -> bool:
    """Tell whether an image is here."""
    found = subprocess.run(["docker", "image", "inspect", name], capture_output=True, timeout=COMMAND_S, check=False)
    return found.returncode == 0


def pull(name: str) -> bool:
    """Tell whether an image is here, or can be had."""
    if have_image(name):
        return True
    return subprocess.run(["docker", "pull", name], capture_output=True, timeout=_PULL_S, check=False).returncode == 0


def build(name: str, context: Path, timeout_s: float) -> None:
    """Build an image of a directory with a Dockerfile."""
    docker("build", "--quiet", "--tag", name, str(context), timeout_s=timeout_s)
