"""Must show 1: the wheel, installed into an empty environment, runs `holdfast demo` from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ("pyproject.toml", "README.md", "LICENSE", "services", "shared")
INSTALL_S: Final = 240  # bounds for a heavily loaded machine
PROBE_S: Final = 30
DEMO_S: Final = 240

pytestmark = pytest.mark.timeout(INSTALL_S + PROBE_S + DEMO_S)


def run(*command: str | Path, cwd: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program as somebody would who has nothing of ours in his environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOLDFAST_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def need_registry(tmp_path: Path) -> None:
    """Skip where pip reaches no registry."""
    probe = (
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        tmp_path / "probe",
        "setuptools",
    )
    try:
        reached = run(*probe, "--retries", "0", cwd=tmp_path, timeout_s=PROBE_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip reached no registry within {PROBE_S} s")
    if reached.returncode != 0:
        pytest.skip(f"pip reaches no registry: {reached.stderr.strip()[-200:]}")


def test_the_wheel_in_an_empty_environment_runs_the_demo_from_any_folder(tmp_path: Path) -> None:
    need_registry(tmp_path)
    source, elsewhere, wheels, environment = (tmp_path / name for name in ("source", "elsewhere", "wheels", "env"))
    elsewhere.mkdir()
    source.mkdir()
    for name in SHIPPED:  # a build leaves traces in its tree: not in ours
        original = ROOT / name
        if original.is_dir():
            shutil.copytree(original, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(original, source / name)
    built = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", wheels, source, cwd=elsewhere, timeout_s=INSTALL_S
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("holdfast-*.whl")
    made = run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=elsewhere, timeout_s=INSTALL_S)
    assert made.returncode == 0, made.stderr
    constraints = ROOT / "constraints.txt"
    installed = run(
        sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "-c", constraints, f"{wheel}[embedded]",
        cwd=elsewhere, timeout_s=INSTALL_S,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    shutil.rmtree(source)
    demo = run(environment / "bin" / "holdfast", "demo", "--json", cwd=elsewhere, timeout_s=DEMO_S)
    assert demo.returncode == 0, demo.stderr
    result = json.loads(demo.stdout)
    assert {(one["kernel"], one["holdfast"]) for one in result["devices"]} == {("lost", "kept")}
    assert list(elsewhere.iterdir()) == []
