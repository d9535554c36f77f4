"""The options that many commands have: said once, so that they are called and explained the same everywhere."""

from __future__ import annotations

from typing import Annotated, Final

import typer

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
DEFAULT_HOST: Final = "lab"
DEFAULT_TIMEOUT_S: Final = 120.0

Nats = Annotated[str, typer.Option("--nats", envvar="HOLDFAST_NATS_URL", help="URL of the bus.")]
Host = Annotated[str, typer.Option("--host", envvar="HOLDFAST_HOST", help="Host whose ports are meant.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs; one document per line.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds until the outcome must be known.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before something is changed.")]
Port = Annotated[str, typer.Argument(help="A port or its device: 0000:3b:00.0, 3b:00.0, Slot(4), or a serial number.")]
AnyPort = Annotated[str | None, typer.Argument(help="Only what concerns this port, slot or device.")]
Lease = Annotated[str, typer.Argument(help="Its id, or a part of it that no other has.")]
