"""Bytes in, messages out: msgpack and JSON alike, and a clear error for everything else."""

from __future__ import annotations

import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.pcie import Address
from shared.protocol import ProtocolError, Reason, Refused, VersionError, decode, encode, fabric, is_json, requests

PORT = Address.parse("0000:3b:00.0")
OPEN = fabric.Open(id="r-1", port=PORT, rank=fabric.Rank.RECOVERY, cause="dpc", holder="coordinator-1")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_message_survives_the_wire_in_both_forms(as_json: bool) -> None:
    data = encode(OPEN, as_json=as_json)
    assert is_json(data) is as_json
    assert decode(data, fabric.Open) == OPEN


def test_any_msgpack_library_can_read_what_we_send() -> None:
    assert msgpack.unpackb(encode(OPEN))["port"] == "0000:3b:00.0"


def test_a_person_may_leave_out_the_version_and_write_the_short_address() -> None:
    message: requests.Inject = decode(b' {"what": "remove", "target": "3b:00.0"}', requests.Inject)
    assert message.target == PORT


def test_a_reply_is_told_from_a_refusal_by_its_tag() -> None:
    refusal = Refused(reason=Reason.HELD, message="recovery r-1 holds 0000:3b:00.0")
    assert decode(encode(refusal), fabric.OpenReply) == refusal


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"{", "JSON"),
        (b"\xc1", "msgpack"),
        (b"", "msgpack"),
        (b'{"what": "remove", "target": "nonsense"}', "'nonsense' is not a PCI address"),
        (b'{"what": "explode", "target": "3b:00.0"}', "explode"),
        (b'{"what": "remove"}', "target"),
        (b'{"what": "remove", "target": "3b:00.0", "spede": 1}', "spede"),
        (b'{"what": "remove", "target": 7}', "7 is not a PCI address"),
        (b'{"what": "remove", "target": "\xff\xfe"}', "JSON"),
    ],
)
def test_a_malformed_message_names_what_is_wrong(data: bytes, names: str) -> None:
    with pytest.raises(ProtocolError, match=names):
        decode(data, requests.Inject)


def test_an_unknown_version_says_which_one_is_spoken() -> None:
    with pytest.raises(VersionError, match="version 2 is not spoken here; send version 1"):
        decode(json.dumps({"what": "remove", "target": "3b:00.0", "v": 2}).encode(), requests.Inject)


@given(st.binary(max_size=200))
def test_p9_no_bytes_do_more_than_raise_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data, fabric.Execute)
