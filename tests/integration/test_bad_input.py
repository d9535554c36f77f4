"""Bad messages and names: a clear error that names the thing and says what to do; nothing changed, nothing lost, no traceback."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from services.console._exit import ExitCode
from shared.pcie import Address
from shared.protocol import subjects, to_builtins
from shared.protocol.fabric import Dump, Dumped, DumpReply
from tests.integration.campaign import some_of
from tests.integration.cli import Cli
from tests.integration.fleet import Bench
from tests.integration.promises import keeps
from tests.integration.stranger import Stranger

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT: Final = Address.parse("0000:00:0d.0")
DRIVE: Final = Address.parse("0000:0d:00.0")
ABSENT: Final = "0000:77:00.0"

REQUESTS: Final = (
    "inject", "recover", "reset", "hold", "release", "break", "lift",
    "fabric.read", "fabric.dump", "fabric.leases", "fabric.topology",
    "fabric.coordinator.open", "fabric.coordinator.execute", "fabric.coordinator.beat", "fabric.coordinator.adopt",
    "fabric.coordinator.close", "fabric.hotplug.open", "fabric.aer.acknowledge",
    f"{PORT.token}.slot.power_off", f"{PORT.token}.slot.power_on", f"{PORT.token}.slot.status", f"{DRIVE.token}.driver",
)  # fmt: skip
MALFORMED: Final = (
    (b"", "malformed"),
    (b"nonsense", "malformed"),
    (b'{"v": 1', "malformed"),
    (b'{"v": 1, "nobody_knows": true}', "malformed"),
    (b'{"v": "one"}', "malformed"),
    (b"\x81\xa1v", "malformed"),  # a map that ends too early
    (b"\xc1", "malformed"),  # the one byte that msgpack never uses
    (b'{"v": 99}', "version"),
    (b"\x81\xa1v\x63", "version"),  # the same in msgpack
)


async def standing(bench: Bench) -> dict[str, Any]:
    """Return what bad input must not change."""
    images = []
    for function in (PORT, DRIVE):
        reply = await bench.request(subjects.fabric(bench.host, "dump"), Dump(function=function), DumpReply)
        assert isinstance(reply, Dumped)
        images.append(reply.config)
    leases = await bench.leases()
    return {
        "images": images,
        "registry": to_builtins(await bench.registry()),
        "open": [lease.ref for lease in leases.leases],
        "retired": [retired.lease for retired in leases.retired],
    }


def clear(err: str, *named: str) -> None:
    """Assert that an error names the thing, and shows no traceback."""
    assert "Traceback" not in err, err
    for text in named:
        assert text in err, err


# --- Messages ---


@pytest.mark.parametrize("subject", REQUESTS)
async def test_a_malformed_request_is_refused_with_its_reason_and_changes_nothing(bench: Bench, subject: str) -> None:
    before = await standing(bench)
    async with Stranger(bench.fleet.url) as person:
        for payload, reason in MALFORMED:
            answer = await person.ask(f"pcie.{bench.host}.{subject}", payload)
            assert answer, f"{subject} {payload!r}: no answer"
            as_json = payload.startswith(b"{")
            refused = json.loads(answer) if as_json else msgspec.msgpack.decode(answer)
            assert (refused["type"], refused["reason"]) == ("refused", reason), (payload, refused)
            assert refused["message"], payload
            if reason == "version":
                assert "99" in refused["message"], refused
                assert "version 1" in refused["message"], refused
    assert await standing(bench) == before


async def test_a_malformed_request_names_the_field_at_fault(bench: Bench) -> None:
    async with Stranger(bench.fleet.url) as person:
        for subject, asked, named in (
            ("inject", {"what": "explode", "target": str(PORT)}, "$.what"),
            ("inject", {"what": "remove", "target": "yonder"}, "'yonder' is not a PCI address"),
            ("inject", {"what": "remove"}, "`target`"),
            ("fabric.dump", {"function": 7}, "7 is not a PCI address"),
            ("reset", {"function": str(DRIVE), "colour": "red"}, "`colour`"),
        ):
            answer = await person.ask(f"pcie.{bench.host}.{subject}", asked)
            assert answer is not None
            assert named in json.loads(answer)["message"], answer


@pytest.mark.parametrize(
    ("subject", "asked", "reason", "named"),
    [
        ("break", {}, "malformed", "`lease`"),
        ("break", {"lease": 7}, "malformed", "$.lease"),
        ("break", {"lease": "x-1", "by": 3}, "malformed", "$.by"),
        ("break", {"lease": "x-1", "force": True}, "malformed", "`force`"),
        ("break", {"lease": "x-nobodys"}, "unknown_lease", "x-nobodys"),
        ("lift", {}, "malformed", "`port`"),
        ("lift", {"port": 7}, "malformed", "$.port"),
        ("lift", {"port": str(PORT), "by": None}, "malformed", "$.by"),
        ("lift", {"port": ABSENT}, "unknown_port", ABSENT),
        ("lift", {"port": str(DRIVE)}, "unknown_port", f"name {PORT}"),
        ("lift", {"port": str(PORT)}, "policy", "not in quarantine"),
        ("hold", {"port": str(PORT), "accept": "revision"}, "malformed", "$.accept"),
        ("hold", {"port": str(PORT), "accept": ["colour"]}, "malformed", "'colour'"),
        ("hold", {"port": str(PORT), "quiet_errors": "yes"}, "malformed", "$.quiet_errors"),
        ("hold", {"port": str(PORT), "max_s": -1}, "malformed", "`max_s`"),
        ("hold", {"port": str(PORT), "lease": "x-nobodys"}, "unknown_lease", "x-nobodys"),
        ("reset", {"function": str(DRIVE), "method": "kick"}, "malformed", "'kick'"),
        ("reset", {"function": str(DRIVE), "method": ["flr"]}, "malformed", "$.method"),
        ("reset", {"function": str(DRIVE), "dry_run": 1}, "malformed", "$.dry_run"),
        ("reset", {"function": str(DRIVE), "domain": "yes"}, "malformed", "$.domain"),
        ("reset", {"function": str(DRIVE), "lease": "x-nobodys"}, "unknown_lease", "x-nobodys"),
        ("reset", {"function": str(PORT)}, "unsupported", "is a bridge"),
        ("reset", {"function": str(PORT), "dry_run": True}, "unsupported", "is a bridge"),
    ],
)
async def test_an_operators_verb_by_hand_with_what_it_cannot_mean_is_refused_by_name_and_changes_nothing(
    bench: Bench, subject: str, asked: dict[str, Any], reason: str, named: str
) -> None:
    before = await standing(bench)
    async with Stranger(bench.fleet.url) as person:
        answer = await person.ask(f"pcie.{bench.host}.{subject}", asked)
    assert answer is not None
    refused = json.loads(answer)
    assert (refused["type"], refused["reason"]) == ("refused", reason), refused
    assert named in refused["message"], refused
    assert await standing(bench) == before


async def test_malformed_hints_and_facts_stop_nobody(bench: Bench) -> None:
    before = await standing(bench)
    async with Stranger(bench.fleet.url) as person:
        for payload, _ in MALFORMED:
            for service in ("hotplug", "aer", "dpc"):
                await person.publish(subjects.irq(bench.host, PORT, service), payload)
            for what in ("lease.opened", "lease.closed", "recovery.closed", "device.removed"):
                await person.publish(subjects.fact(bench.host, PORT, what), payload)
        await person.arrived()
    async with keeps(bench, str(PORT), resets=False):
        code, _, err = await Cli(bench).run("reset", str(DRIVE), "--method", "flr")
        assert code == 0, err
    code, told, err = await Cli(bench).run("history", str(PORT), "--json")
    assert code == 0, err
    assert json.loads(told.splitlines()[-1])["host"] == bench.host
    after = await standing(bench)
    assert (after["images"], after["registry"], after["open"]) == (before["images"], before["registry"], before["open"])


# --- Names ---


async def test_nobody_answers_for_an_unknown_host_by_hand_either(bench: Bench) -> None:
    async with Stranger(bench.fleet.url) as person:
        assert await person.ask("pcie.nowhere.inject", {"what": "remove", "target": str(PORT)}) is None


@pytest.mark.parametrize(
    ("subject", "asked"),
    [
        ("inject", {"what": "remove", "target": ABSENT}),
        ("reset", {"function": ABSENT}),
        ("hold", {"port": ABSENT}),
        ("recover", {"port": ABSENT, "cause": "dpc"}),
        ("fabric.dump", {"function": ABSENT}),
        ("fabric.read", {"operations": [{"verb": "read", "function": ABSENT}]}),
        (
            "fabric.coordinator.open",
            {"id": "r-x", "port": ABSENT, "rank": 3, "cause": "dpc", "holder": "nobody", "reach": "reset"},
        ),
        ("0000-77-00-0.slot.power_off", {}),
        ("0000-0d-00-0.slot.power_off", {}),  # a function, and no slot
        ("nonsense.slot.status", {}),
    ],
)
async def test_an_unknown_port_is_refused_by_name_and_changes_nothing(
    bench: Bench, subject: str, asked: dict[str, Any]
) -> None:
    before = await standing(bench)
    async with Stranger(bench.fleet.url) as person:
        answer = await person.ask(f"pcie.{bench.host}.{subject}", asked)
    assert answer is not None
    refused = json.loads(answer)
    assert refused["type"] == "refused"
    assert refused["reason"] in {"unknown_port", "unsupported"}
    assert any(name in refused["message"] for name in (ABSENT, str(DRIVE), "nonsense")), refused
    assert await standing(bench) == before


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    some_of(
        [
            (("reset", ABSENT, "--yes"), ExitCode.ABSENT, ABSENT),
            (("hold", "Slot(99)", "--", "true"), ExitCode.ABSENT, "Slot(99)"),
            (("dump", "3b:00"), ExitCode.USAGE, "'3b:00'"),
            (("inject", "remove", "00:1f.9"), ExitCode.USAGE, "'00:1f.9'"),
            (("lease", "show", ""), ExitCode.USAGE, "name the lease"),
            (("lease", "break", "no-such-lease"), ExitCode.ABSENT, "no-such-lease"),
            (("quarantine", "release", str(PORT)), ExitCode.ABSENT, "quarantine list"),
            (("quarantine", "release", ""), ExitCode.USAGE, "names no port"),
            (("reset", str(PORT), "--dry-run"), ExitCode.POLICY, "is a bridge"),
            (("reset", ABSENT, "--dry-run"), ExitCode.ABSENT, ABSENT),
            (("hold", str(PORT), "--accept", "colour", "--", "true"), ExitCode.USAGE, "'colour'"),
            (("hold", str(PORT), "--max", "nan", "--", "true"), ExitCode.USAGE, "--max nan"),
            (("hold", str(PORT), "--max", "-1", "--", "true"), ExitCode.USAGE, "--max -1"),
            (("hold", str(PORT), "--before", " ", "--", "true"), ExitCode.USAGE, "--before is empty"),
            (("hold", str(PORT), "--", ""), ExitCode.USAGE, "the command is empty"),
            (("inject", "dpc", str(PORT), "--after", "inf"), ExitCode.USAGE, "--after inf"),
            (("audit", "--lspci", "nowhere.txt"), ExitCode.USAGE, "nowhere.txt"),
            (("audit", "--sysfs", "nowhere"), ExitCode.USAGE, "nowhere"),
            (("explain", "nowhere.txt"), ExitCode.USAGE, "nowhere.txt"),
            (("status", "--host", "nowhere"), ExitCode.UNREACHABLE, "'nowhere'"),
            (("status", "--host", "no.where"), ExitCode.USAGE, "'no.where'"),
        ],
        *range(0, 60, 3),
    ),
)
async def test_the_command_names_what_it_cannot_find_or_read(
    bench: Bench, arguments: tuple[str, ...], code: ExitCode, named: str
) -> None:
    ended_with, out, err = await Cli(bench).run(*arguments)
    assert (ended_with, out) == (code, "")
    clear(err, named)
    assert len(err.splitlines()) == 1
