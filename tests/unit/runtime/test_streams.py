from __future__ import annotations

from types import SimpleNamespace

import pytest
from nats.aio.client import ServerVersion

from shared.runtime._nats_records import Streams
from shared.runtime.bus import BusUnreachable


@pytest.mark.parametrize(("version", "accepted"), [("2.10.29", False), ("2.11.0", True), ("2.15.1-RC.1", True)])
async def test_p2_a_server_that_ignores_whose_revision_is_meant_is_refused(version: str, accepted: bool) -> None:
    """It refused each write of the owner of a host: a lease was adopted every 5 s, and no step followed."""
    created = []

    async def add_stream(config: object) -> None:
        created.append(config)

    client = SimpleNamespace(stats={"reconnects": 0}, ready=True, connected_server_version=ServerVersion(version))
    streams = Streams(client, SimpleNamespace(add_stream=add_stream))  # type: ignore[arg-type]
    if accepted:
        await streams.ensure()
    else:
        with pytest.raises(BusUnreachable, match=r"is 2\.10: 2\.11 or later"):
            await streams.ensure()
    assert bool(created) is accepted
