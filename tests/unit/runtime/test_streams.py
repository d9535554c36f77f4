"""How the two streams come to be there, over a JetStream that is scripted."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import nats.js.errors
import pytest
import structlog
from nats.aio.client import ServerVersion
from nats.js.api import RePublish, StreamConfig, StreamInfo, StreamSource, StreamState

from shared.runtime._nats_streams import _CONFIGS, BUCKET_STREAM, Streams
from shared.runtime.bus import BusError, BusUnreachable, NobodyListens

BOTH = ["PCIE_FACTS", BUCKET_STREAM]


class JetStream:
    """Streams by name, with their replicas; it stands in for the client as well."""

    def __init__(self, **replicas: int) -> None:
        self.replicas = replicas
        self.settings: dict[str, dict[str, Any]] = {}  # of a stream that somebody made otherwise
        self.stats = {"reconnects": 0}
        self.ready = True
        self.connected_server_version = ServerVersion("2.15.1")
        self.leaderless = False
        self.looks = 0
        self.created: list[str] = []
        self.wanted_by_another = 0  # replicas that somebody else makes a stream with, in between
        self.refuses: nats.js.errors.APIError | None = None

    async def stream_info(self, name: str) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        if self.leaderless:
            raise nats.js.errors.ServiceUnavailableError
        if name not in self.replicas:
            raise nats.js.errors.NotFoundError(code=404, err_code=10059, description="stream not found")
        config = _CONFIGS[name].evolve(name=name, num_replicas=self.replicas[name], **self.settings.get(name, {}))
        return StreamInfo(config, StreamState(0, 0, 0, 0, 0))

    async def add_stream(self, config: StreamConfig) -> Any:
        assert config.name is not None
        assert config.num_replicas is not None
        if self.refuses is not None:
            raise self.refuses
        if self.wanted_by_another:
            self.replicas[config.name] = self.wanted_by_another
            raise nats.js.errors.BadRequestError(code=400, err_code=10058, description="stream name already in use")
        self.created.append(config.name)
        self.replicas[config.name] = config.num_replicas
        return await self.stream_info(config.name)


def streams(jetstream: JetStream, replicas: int = 1, *, creates: bool = True) -> Streams:
    return Streams(cast("Any", jetstream), cast("Any", jetstream), replicas, creates=creates)


@pytest.mark.parametrize(("version", "accepted"), [("2.10.29", False), ("2.11.0", True), ("2.15.1-RC.1", True)])
async def test_p2_a_server_that_ignores_whose_revision_is_meant_is_refused(version: str, accepted: bool) -> None:
    """It refused each write of the owner of a host: a lease was adopted every 5 s, and no step followed."""
    jetstream = JetStream()
    jetstream.connected_server_version = ServerVersion(version)
    if accepted:
        await streams(jetstream).ensure()
    else:
        with pytest.raises(BusUnreachable, match=r"is 2\.10: 2\.11 or later"):
            await streams(jetstream).ensure()
    assert bool(jetstream.created) is accepted


async def test_what_is_missing_is_made_with_as_many_replicas_as_are_wanted() -> None:
    jetstream = JetStream(PCIE_FACTS=3)
    await streams(jetstream, 3).ensure()
    assert jetstream.created == [BUCKET_STREAM]
    assert jetstream.replicas == {"PCIE_FACTS": 3, BUCKET_STREAM: 3}


async def test_a_stream_with_other_replicas_is_accepted_and_complained_about_once() -> None:
    jetstream = JetStream(PCIE_FACTS=1, KV_PCIE=3)
    seen = streams(jetstream, 3)
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            await seen.ensure()
            seen.doubt()
    assert not jetstream.created
    (line,) = said
    assert (line["stream"], line["replicas"], line["wanted"]) == ("PCIE_FACTS", 1, 3)
    assert "nats stream edit PCIE_FACTS --replicas 3" in line["fix"]


@pytest.mark.parametrize(
    ("stream", "setting", "value", "option"),
    [
        (BUCKET_STREAM, "allow_rollup_hdrs", True, "--no-allow-rollup"),
        ("PCIE_FACTS", "allow_rollup_hdrs", True, "--no-allow-rollup"),
        (BUCKET_STREAM, "deny_delete", False, "--deny-delete"),
        ("PCIE_FACTS", "deny_purge", False, "--deny-purge"),
        (BUCKET_STREAM, "max_msgs_per_subject", 5, "--max-msgs-per-subject=1"),
        ("PCIE_FACTS", "max_msgs_per_subject", 1, "--max-msgs-per-subject=-1"),
        ("PCIE_FACTS", "republish", RePublish(src=">", dest="pcie.lab.recover"), "--no-republish"),
        (BUCKET_STREAM, "sources", [StreamSource(name="MINE")], "--interactive"),
        (BUCKET_STREAM, "mirror", StreamSource(name="MINE"), "--interactive"),
    ],
)
async def test_a_stream_that_lacks_protection_is_an_error_once_with_what_to_do(
    stream: str, setting: str, value: Any, option: str
) -> None:
    jetstream = JetStream(PCIE_FACTS=1, KV_PCIE=1)
    jetstream.settings[stream] = {setting: value}
    seen = streams(jetstream)
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            await seen.ensure()
            seen.doubt()
    (line,) = said
    assert (line["log_level"], line["stream"], line["setting"]) == ("error", stream, setting)
    assert line["fix"] == f"nats stream edit {stream} {option}"


async def test_a_stream_as_we_make_it_is_nothing_to_complain_about() -> None:
    with structlog.testing.capture_logs() as said:
        await streams(JetStream()).ensure()
    assert not said


async def test_a_stream_that_somebody_else_makes_in_between_with_other_replicas_is_accepted() -> None:
    jetstream = JetStream()
    jetstream.wanted_by_another = 5
    await streams(jetstream, 3).ensure()
    assert jetstream.replicas == dict.fromkeys(BOTH, 5)


async def test_who_only_looks_makes_nothing_and_is_told_so() -> None:
    jetstream = JetStream()
    with pytest.raises(BusError, match="no service of Holdfast has met this bus yet"):
        await streams(jetstream, creates=False).ensure()
    assert not jetstream.created


async def test_replicas_of_a_server_that_stands_alone_are_refused_with_what_to_set() -> None:
    jetstream = JetStream()
    jetstream.refuses = nats.js.errors.ServerError(code=500, err_code=10074, description="non-clustered")
    with pytest.raises(BusError, match="HOLDFAST_REPLICAS=1"):
        await streams(jetstream, 3).ensure()


async def test_without_a_leader_everybody_waits_for_one_look_and_hears_the_same() -> None:
    """A beat must not wait behind the looks of all others."""
    jetstream = JetStream()
    jetstream.leaderless = True
    seen = streams(jetstream)
    heard = await asyncio.gather(*(seen.ensure() for _ in range(10)), return_exceptions=True)
    assert all(isinstance(one, NobodyListens) for one in heard)
    assert jetstream.looks == 1
    jetstream.leaderless = False
    await seen.ensure()
    assert jetstream.created == BOTH


async def test_one_who_gives_up_waiting_does_not_end_the_look_of_the_others() -> None:
    jetstream = JetStream()
    seen = streams(jetstream)
    impatient, patient = asyncio.create_task(seen.ensure()), asyncio.create_task(seen.ensure())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert impatient.cancelled()
    assert jetstream.created == BOTH


async def test_the_streams_are_looked_for_again_after_a_reconnect_and_in_doubt() -> None:
    """NATS may forget (prior-art/nats.md, 1.4)."""
    jetstream = JetStream()
    seen = streams(jetstream)
    await seen.ensure()
    looks = jetstream.looks
    await seen.ensure()
    assert jetstream.looks == looks
    jetstream.replicas.clear()
    jetstream.stats["reconnects"] = 1
    await seen.ensure()
    jetstream.replicas.clear()
    seen.doubt()
    await seen.ensure()
    assert jetstream.created == 3 * BOTH
