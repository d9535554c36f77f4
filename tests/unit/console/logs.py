"""Kernel logs for tests: those that `holdfast` carries, and the others of the prior art."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services import console

DATA: Final = Path(console.__file__).parent / "data"
DMESG: Final = Path(__file__).parent / "dmesg"
