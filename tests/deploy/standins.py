"""Images that stand in for the public base images where those cannot be pulled: a Debian of one's own, with Python,
with a NATS server, and with the packages that a build needs. They have what the public ones have, and no more.

How this machine gets its packages (mirror, index, certificates) is asked of its own tools and stays on it: a package
is brought here by pip as it is set up, and lies in the image that builds, not in the one that is built.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from services.console import _nats_server

from . import engine

ROOT: Final = Path(__file__).parents[2]
_NAME: Final = "holdfast-standin"
_SUITE: Final = "bookworm"  # its Python is 3.11, as that of the public image
_PACKAGES: Final = "ca-certificates,python3-minimal,python3-venv,wget"
_LEFT_OUT: Final = ("./var/cache/apt", "./var/lib/apt/lists", "./usr/share/doc", "./usr/share/locale")
_BOOTSTRAP_S: Final = 900.0
_STEP_S: Final = 300.0

_PYTHON: Final = "FROM {base}\nRUN ln -s /usr/bin/python3 /usr/local/bin/python\n"
_NATS: Final = "FROM {base}\nCOPY nats-server /usr/local/bin/\n"
_BUILDER: Final = "FROM {base}\nCOPY wheels /wheels\nENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels\n"


class Unavailable(Exception):  # noqa: N818 - a reason to skip, not a defect
    """Neither the public images nor stand-ins can be had here."""


def images() -> dict[str, str]:
    """Return the variables that make compose use stand-ins; none where the public images can be pulled."""
    public = _public()
    if all(engine.pull(image) for image in public):
        return {}
    return {"PYTHON_IMAGE": _python(), "NATS_IMAGE": _nats(), "BUILDER_IMAGE": _builder()}


def _public() -> tuple[str, ...]:
    """Read the default images from where they are chosen."""
    common = (ROOT / "deploy" / "common.yaml").read_text()
    return tuple(
        common.partition("${" + variable + ":-")[2].partition("}")[0] for variable in ("PYTHON_IMAGE", "NATS_IMAGE")
    )


def _python() -> str:
    base, image = f"{_NAME}:{_SUITE}", f"{_NAME}:python"
    if not engine.have_image(base):
        _bootstrap(base)
    return _built(image, _PYTHON.format(base=base))


def _nats() -> str:
    return _built(f"{_NAME}:nats", _NATS.format(base=_python()), {"nats-server": Path(_nats_server.find_binary())})


def _builder() -> str:
    """The packages at the versions of constraints.txt; built again when those change."""
    wanted = (ROOT / "constraints.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    image = f"{_NAME}:builder-{hashlib.sha256(wanted).hexdigest()[:12]}"
    if engine.have_image(image):
        return image
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels)]
        _run([*command, "--constraint", str(ROOT / "constraints.txt"), *needs], "pip cannot get the packages", _STEP_S)
        return _built(image, _BUILDER.format(base=_python()), {"wheels": wheels})


def _bootstrap(image: str) -> None:
    if shutil.which("debootstrap") is None:
        raise Unavailable("the base images cannot be pulled, and there is no debootstrap to make stand-ins")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)]
        _run(command, "the base images cannot be pulled, and debootstrap fails (is this root?)", _BOOTSTRAP_S)
        archive = Path(scratch) / "root.tar"
        _run(
            ["tar", "-C", str(root), *(f"--exclude={path}" for path in _LEFT_OUT), "-cf", str(archive), "."],
            "the stand-in cannot be packed",
            _STEP_S,
        )
        engine.docker("import", "--change", 'CMD ["sh"]', str(archive), image, timeout_s=_STEP_S)


def _built(image: str, dockerfile: str, files: dict[str, Path] | None = None) -> str:
    """Build an image of these files; the engine's cache knows what has not changed."""
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch)
        (context / "Dockerfile").write_text(dockerfile)
        for name, source in (files or {}).items():
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, context / name)
        engine.build(image, context, _STEP_S)
    return image


def _run(command: list[str], complaint: str, timeout_s: float) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if ended.returncode != 0:
        raise Unavailable(f"{complaint}: {ended.stderr[-500:] or ended.stdout[-500:]}")
