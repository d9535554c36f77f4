"""NATS's own keys (nkeys): a seed is what a user keeps to itself, the public key what the server knows of it."""

from __future__ import annotations

import secrets
from typing import Final

import nkeys

_SEED_BYTES: Final = 32


def new_seed() -> bytes:
    """Make the seed of a new user, as it is written into a file."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_USER)
    return seed


def public_key(seed: bytes) -> str:
    """Return the public key of a user's seed. Raises ValueError where it is no such seed, or a damaged one."""
    try:
        prefix, raw = nkeys.decode_seed(seed)
        again = nkeys.encode_seed(bytes(raw), prefix)  # with the checksum that it should have
        public: bytes = nkeys.from_seed(bytearray(seed)).public_key
    except (nkeys.NkeysError, ValueError, TypeError) as error:
        raise ValueError("not the seed of an nkey") from error
    if prefix != nkeys.PREFIX_BYTE_USER or again != seed:
        raise ValueError("not the seed of a user")
    return public.decode("ascii")
