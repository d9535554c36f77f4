"""Who we are to the NATS servers, and whom we believe to be one: the credential, the certificates, and what they refuse.

A server is asked for its certificate before it sees our key's signature. One that offers no TLS where it must be on is
refused: else whoever sits between could switch it off (nats-py 2.16 connects in the clear if the server's greeting says
so, whatever it was told to use).
"""

from __future__ import annotations

import ssl
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shared.protocol import permissions

from ._exit_codes import EXIT_CREDENTIAL, EXIT_UNTRUSTED
from ._nkeys import public_key
from ._settings import Settings, Tls
from .bus import BusRefused

_SEED_BYTES_MAX: Final = 1024  # one has 58; what is longer is another file
_ENCRYPTED: Final = ("tls", "wss")
_THIS_MACHINE: Final = "localhost"
_NO_TLS: Final = "the server offers no TLS"
_DENIALS: Final = ("authorization violation", "user authentication expired", "user authentication revoked")
_MAKE_KEYS: Final = "`holdfast keys init` makes credentials"


class Security(msgspec.Struct, frozen=True):
    """What a connection needs to know. `tls` is used whenever the server wants it; `tls_required` says that it must."""

    seed: str | None
    inbox: str
    tls: ssl.SSLContext
    tls_required: bool


class TlsMissingError(ssl.SSLError):
    """TLS must be on, and the server offers none."""

    def __init__(self) -> None:
        super().__init__(0, _NO_TLS)

    def __str__(self) -> str:
        return _NO_TLS


def load(settings: Settings) -> Security:
    """Read credential and certificates. Raises BusRefused, naming the file and what to do."""
    seed, inbox = None, permissions.INBOXES
    if settings.nats_credential is not None:
        seed, inbox = _credential(settings.nats_credential)
    return Security(seed, inbox, _context(settings.nats_ca), tls_required(settings))


def tls_required(settings: Settings) -> bool:
    """Tell whether TLS must be on."""
    if settings.tls is not Tls.AUTO:
        return settings.tls is Tls.ON
    return not all(_is_here(url) for url in settings.servers)


def refusal(error: Exception, shown: str, settings: Settings) -> BusRefused | None:
    """Return what a failed attempt to connect means where trying again would not help, else None."""
    if isinstance(error, ssl.SSLCertVerificationError):
        expired = "renew it with `holdfast keys init DIR --if-missing`, and restart the server"
        authority = settings.nats_ca or "the system's authorities"
        return BusRefused(
            f"the certificate of the NATS server at {shown} is not trusted: {error.verify_message} (checked against "
            f"{authority}); set HOLDFAST_NATS_CA to the authority that issued it, or {expired}",
            EXIT_UNTRUSTED,
        )
    if isinstance(error, TlsMissingError):
        return BusRefused(
            f"{_NO_TLS} at {shown}, and HOLDFAST_TLS={settings.tls} demands it: configure tls there, or set "
            "HOLDFAST_TLS=off on a network that nobody else can reach",
            EXIT_UNTRUSTED,
        )
    if not any(denial in str(error).lower() for denial in _DENIALS):
        return None
    if settings.nats_credential is None:
        told = f"the NATS server at {shown} wants to know who we are; set HOLDFAST_NATS_CREDENTIAL ({_MAKE_KEYS})"
    else:
        told = (
            f"the NATS server at {shown} does not know the credential {settings.nats_credential}: "
            "is it in the server's users.conf, and was the server reloaded since?"
        )
    return BusRefused(told, EXIT_CREDENTIAL)


def _credential(file: Path) -> tuple[str, str]:
    """Return seed and inbox prefix. What the file holds is never shown."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise BusRefused(f"the credential {file} is not a file; {_MAKE_KEYS}", EXIT_CREDENTIAL)
        with file.open("rb") as opened:
            held = opened.read(_SEED_BYTES_MAX + 1).strip()
    except OSError as error:
        raise BusRefused(
            f"the credential {file} cannot be read: {error.strerror}; {_MAKE_KEYS}", EXIT_CREDENTIAL
        ) from error
    try:
        public = public_key(held)
    except ValueError as error:
        raise BusRefused(
            f"the credential {file} is not the seed of a user's nkey; {_MAKE_KEYS}", EXIT_CREDENTIAL
        ) from error
    return held.decode("ascii"), permissions.inbox(public)


def _context(authority: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority)
    except ssl.SSLError as error:
        told = f"the authority {authority} (HOLDFAST_NATS_CA) is not a certificate in PEM form"
        raise BusRefused(told, EXIT_UNTRUSTED) from error
    except OSError as error:
        told = f"the authority {authority} (HOLDFAST_NATS_CA) cannot be read: {error.strerror}"
        raise BusRefused(told, EXIT_UNTRUSTED) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_here(url: str) -> bool:
    """Tell whether a URL leads to this machine, and asks for no TLS itself."""
    parts = urlsplit(url)
    if parts.scheme in _ENCRYPTED or parts.hostname is None:
        return False
    if parts.hostname == _THIS_MACHINE:
        return True
    try:
        return ip_address(parts.hostname).is_loopback
    except ValueError:
        return False
