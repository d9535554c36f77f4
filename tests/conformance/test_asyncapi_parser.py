"""The AsyncAPI project's own parser accepts the document, and what travels on the bus is what its schemas say.

The parser comes through npm, into a cache outside the repository. Without node, npm or a network there is a message.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from services.console import _asyncapi
from shared.pcie import Address, Capabilities, Function, Identity, Topology
from shared.pcie.registers import DeviceType, SlotCapabilities
from shared.protocol import Message, Reason, Refused, encode, fabric, requests
from shared.protocol.facts import Fact, What

PARSER: Final = "@asyncapi/parser@3.6.3"
CHECK: Final = Path(__file__).parent / "asyncapi_check.mjs"
INSTALL_S: Final = 100.0
# The document is written for 3.0.0, which all tools read; that 3.1.0 is newer is no fault of it.
EXPECTED: Final = {"asyncapi-latest-version"}

PORT: Final = Address.parse("0000:00:01.0")
CARD: Final = Address.parse("0000:01:00.0")
IDENTITY: Final = Identity(0x8086, 0x0A54, 0x010802, 0, 0, 0x55CD2E4150000001)
LEASE: Final = fabric.Lease(
    id="r-1", token=7, port=PORT, rank=fabric.Rank.RECOVERY, reach=fabric.Reach.RESET, role=fabric.Role.COORDINATOR,
    cause="dpc", holder="c-1", allowed_s=5.0,
    slots=(fabric.SavedSlot(port=PORT, enables=0x1008, surprise_down_masked=None),),
    functions=(
        fabric.SavedFunction(
            address=CARD, identity=IDENTITY, registers=(fabric.SavedRegister(4, 2, 0x506),), uncorrectable=0
        ),
    ),
    debts=fabric.Debts(contained=(PORT,)),
)  # fmt: skip
FUNCTION: Final = Function(
    PORT, DeviceType.ROOT_PORT, IDENTITY, Capabilities(express=0x40),
    slot=SlotCapabilities.HOTPLUG_CAPABLE | SlotCapabilities.ATTENTION_BUTTON,
)  # fmt: skip
FACT: Final = Fact(
    what=What.LINK_DOWN, host="lab", port=PORT, service="hotplug", seq=1, at=datetime(2026, 1, 1, tzinfo=UTC),
    data={"slot": 4, "presence": "absent"},
)  # fmt: skip
SAMPLES: Final[tuple[Message, ...]] = (
    fabric.Open(id="r-1", port=PORT, rank=fabric.Rank.RECOVERY, cause="dpc", holder="c-1"),
    fabric.Opened(lease=LEASE, absorbed=("slot-1",)),
    fabric.LeaseList(leases=(LEASE,), retired=(fabric.RetiredLease(lease=LEASE.ref),)),
    fabric.Executed(values=(1, None), lease=LEASE.ref),
    fabric.Dumped(function=PORT, config=bytes(range(256))),
    fabric.TopologyReply(topology=Topology((FUNCTION,))),
    Refused(reason=Reason.HELD, message="r-1 comes first", lease=LEASE.ref),
    requests.Inject(what=requests.Injection.DPC, target=PORT, card={"0": {"serial": 1}}, header=(1, 2, 3, 4)),
    requests.DriverCall(function=CARD, step=requests.DriverStep.RESUME),
    FACT,
)
# One field of each wrong: the schemas are not so wide that anything would do.
WRONG: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("Open", {"rank": 9}),
    ("Opened", {"type": "refused"}),
    ("LeaseList", {"leases": [1]}),
    ("Executed", {"values": ["one"]}),
    ("TopologyReply", {"topology": {"functions": [{}]}}),
    ("Refused", {"reason": "because"}),
    ("Inject", {"count": None}),
    ("DriverCall", {"v": 2}),
    ("Fact", {"what": "link.sideways"}),
    ("Fact", {"unknown": 1}),
)


@pytest.fixture(scope="module")
def parser() -> Path:
    """Install the parser once, whole or not at all; return the directory of its node_modules."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is missing: install Node.js to check with the AsyncAPI project's own parser")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = caches / "holdfast" / PARSER.replace("/", "-")
    if not (wanted / "node_modules").is_dir():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent) as made:
            _install(Path(made))
            shutil.rmtree(wanted, ignore_errors=True)
            Path(made).rename(wanted)
            Path(made).mkdir()  # for TemporaryDirectory to remove
    return wanted


def _install(directory: Path) -> None:
    command = ["npm", "install", "--prefix", str(directory), "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0",
               "--no-package-lock", PARSER]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failed:
        pytest.skip(f"npm cannot install {PARSER} (offline?): {failed}")


def checked(parser: Path, directory: Path, text: str, samples: list[tuple[str, Any]]) -> dict[str, Any]:
    """Run the parser over a document and its schemas over samples; return what they say."""
    document, values = directory / "asyncapi.json", directory / "samples.json"
    document.write_text(text)
    values.write_text(json.dumps(samples))
    done = subprocess.run(
        ["node", str(CHECK), str(parser), str(document), str(values)], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def as_json(message: Message) -> Any:
    return json.loads(encode(message, as_json=True))


def test_the_document_has_no_fault_and_not_even_a_blemish(parser: Path, tmp_path: Path) -> None:
    told = checked(parser, tmp_path, _asyncapi.text(), [])
    assert [one for one in told["diagnostics"] if one["code"] not in EXPECTED] == []
    assert told["operations"] == len(_asyncapi.document()["operations"])


def test_the_parser_finds_a_fault_where_there_is_one(parser: Path, tmp_path: Path) -> None:
    broken = _asyncapi.document()
    del broken["channels"]["fabric.read"]["parameters"]
    broken["operations"]["receive.fabric.read"]["reply"]["messages"] = [{"$ref": "#/channels/nowhere"}]
    told = checked(parser, tmp_path, json.dumps(broken), [])
    assert {one["severity"] for one in told["diagnostics"]} >= {0}


def test_what_travels_is_what_the_schemas_say(parser: Path, tmp_path: Path) -> None:
    samples = [(type(message).__name__, as_json(message)) for message in SAMPLES]
    told = checked(parser, tmp_path, _asyncapi.text(), [*samples, ("LinkDownData", FACT.data)])
    assert [error for _, error in told["samples"] if error is not None] == []


def test_what_would_be_refused_is_not(parser: Path, tmp_path: Path) -> None:
    right = {type(message).__name__: as_json(message) for message in SAMPLES}
    wrong = [(name, {**right[name], **change}) for name, change in WRONG]
    told = checked(parser, tmp_path, _asyncapi.text(), wrong)
    assert [name for name, error in told["samples"] if error is None] == []
