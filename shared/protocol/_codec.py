"""Bytes and messages: msgpack between services, JSON for people. The first byte tells which (`{` is JSON)."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import msgspec

from shared.pcie import Address, AddressError

from ._base import VERSION, Message

_JSON_OPEN: Final = b"{"
_JSON_BLANKS: Final = b" \t\r\n"

M = TypeVar("M")


class ProtocolError(ValueError):
    """Bytes that are not the message expected. The text names the field."""


class VersionError(ProtocolError):
    """A message of a version that this side does not speak."""


class _Versioned(msgspec.Struct):
    v: int = VERSION


def _encode_foreign(value: Any) -> Any:
    if isinstance(value, Address):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel on the bus")


def _decode_foreign(kind: type, value: Any) -> Any:
    if kind is Address:
        if not isinstance(value, str):
            raise AddressError(f"{value!r} is not a PCI address; write it as lspci does, for example 0000:3b:00.0")
        return Address.parse(value)
    raise NotImplementedError(f"{kind.__name__} does not travel on the bus")


_TO_MSGPACK: Final = msgspec.msgpack.Encoder(enc_hook=_encode_foreign)
_TO_JSON: Final = msgspec.json.Encoder(enc_hook=_encode_foreign)


def is_json(data: bytes) -> bool:
    """Tell whether the sender wrote JSON, and so expects JSON back."""
    return data.lstrip(_JSON_BLANKS)[:1] == _JSON_OPEN


def encode(message: Message, *, as_json: bool = False) -> bytes:
    """Return the message as msgpack, or as JSON for a person."""
    return _TO_JSON.encode(message) if as_json else _TO_MSGPACK.encode(message)


@lru_cache(maxsize=256)
def _decoders(kind: Hashable) -> tuple[msgspec.msgpack.Decoder[Any], msgspec.json.Decoder[Any]]:
    return (
        msgspec.msgpack.Decoder(cast("Any", kind), dec_hook=_decode_foreign),
        msgspec.json.Decoder(cast("Any", kind), dec_hook=_decode_foreign),
    )


_VERSION_DECODERS: Final = (msgspec.msgpack.Decoder(_Versioned), msgspec.json.Decoder(_Versioned))


def decode(data: bytes, kind: type[M] | Any) -> M:
    """Read a message of `kind` (a Message class or a union of them).

    Raises VersionError for an unknown version, else ProtocolError, both naming what is wrong.
    """
    which = 1 if is_json(data) else 0
    key: Any = kind  # types and unions of types hash; the checker cannot know
    form = "JSON" if which else "msgpack"
    try:
        version = _VERSION_DECODERS[which].decode(data).v
        if version != VERSION:
            raise VersionError(f"message version {version} is not spoken here; send version {VERSION}")
        message: M = _decoders(key)[which].decode(data)
    except (msgspec.MsgspecError, AddressError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a valid {form} message: {error}") from error
    return message


def to_builtins(message: Any) -> Any:
    """Return the message as plain dicts, lists and strings, for logs and tables."""
    return msgspec.to_builtins(message, enc_hook=_encode_foreign)


def from_builtins(value: Any, kind: type[M]) -> M:
    """Turn plain dicts (from TOML, say) into `kind`. Raises ProtocolError with the path of the field at fault."""
    try:
        return msgspec.convert(value, kind, dec_hook=_decode_foreign)
    except (msgspec.ValidationError, AddressError) as error:
        raise ProtocolError(str(error)) from error
