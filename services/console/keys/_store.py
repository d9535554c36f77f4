"""A directory of keys: read, completed, and written so that a crash leaves nothing that a second try cannot finish.

    ca.pem  ca-key.pem           the authority; the key is needed only to issue a server's certificate again
    server.pem  server-key.pem   for the NATS servers
    users.conf                   for the NATS servers: the users' public keys, and what each may do
    <user>.nk                    for one user each: its seed

Each file is replaced as a whole, users.conf last: it never names a key that is not there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from services.console._exit import ExitCode, Failure
from shared.protocol import permissions, subjects
from shared.protocol.routes import User
from shared.runtime import new_seed, public_key

from . import _certificates as certificates
from . import _users as users
from ._certificates import Pair

AUTHORITY: Final = ("ca.pem", "ca-key.pem")
SERVER: Final = ("server.pem", "server-key.pem")
USERS: Final = "users.conf"
SEED: Final = ".nk"
RENEW_BEFORE: Final = dt.timedelta(days=30)
_IGNORE: Final = ".gitignore"  # no key gets into a repository by accident
_UNFINISHED: Final = ".holdfast-keys-"  # a file that is being written, or was when we crashed
_DIRECTORY_MODE: Final = 0o700
_PRIVATE: Final = 0o600
# Everybody may read what only the directory's owner can reach. A compose file mounts each secret as it is, past the
# directory, into a container whose user is another one, and neither compose nor the engine changes its mode.
_MOUNTED: Final = 0o644


class Keys(msgspec.Struct, frozen=True):
    """What a directory holds. `authority` is the certificate's and, unless it is kept elsewhere, its key."""

    hosts: tuple[str, ...]
    seeds: dict[str, bytes]
    authority: Pair | None = None
    server: Pair | None = None

    def public_keys(self) -> dict[str, str]:
        """Return the public key of every user."""
        return {name: public_key(seed) for name, seed in self.seeds.items()}


def present(directory: Path) -> tuple[str, ...]:
    """Return the names of the files there that are ours."""
    return tuple(filter(_is_ours, _names(directory)))


def strangers(directory: Path) -> tuple[str, ...]:
    """Return the names of the files there that no `keys init` has made."""
    return tuple(
        name for name in _names(directory) if not (_is_ours(name) or name == _IGNORE or name.startswith(_UNFINISHED))
    )


def read(directory: Path) -> Keys:
    """Read what is there; a pair of which a half is missing, or does not fit, counts as missing. Raises Failure."""
    seeds = {name.removesuffix(SEED): _seed(directory / name) for name in present(directory) if name.endswith(SEED)}
    per_host = tuple(f"{user}-" for user in permissions.PER_HOST)
    hosts = {name.partition("-")[2] for name in seeds if name.startswith(per_host)}
    authority, server = _pair(directory, AUTHORITY), _pair(directory, SERVER)
    if authority is not None and server is not None and not authority.issued(server):
        server = None
    return Keys(tuple(sorted(hosts)), seeds, authority, server)


def complete(found: Keys, hosts: Iterable[str], names: Iterable[str], days: int, now: dt.datetime) -> Keys:
    """Return what was found and what is missing: users of these hosts, and certificates for these names."""
    hosts = tuple(sorted({*found.hosts, *hosts}))
    seeds = {name: found.seeds.get(name) or new_seed() for name in users.user_names(hosts)}
    authority = found.authority or certificates.new_authority(now)
    server = found.server
    wanted = tuple(dict.fromkeys((*(server.names if server else ()), *names)))
    if server is None or set(wanted) - set(server.names) or server.ends_within(RENEW_BEFORE, now):
        server = certificates.new_server(authority, wanted, now, days)
    return Keys(hosts, seeds, authority, server)


def write(directory: Path, keys: Keys) -> tuple[str, ...]:
    """Write what is not there yet as it should be, and remove seeds of users that are no more. Return their names."""
    assert keys.authority is not None
    assert keys.server is not None
    files = {
        AUTHORITY[1]: (keys.authority.key_pem, _PRIVATE),
        AUTHORITY[0]: (keys.authority.certificate_pem, _MOUNTED),
        SERVER[1]: (keys.server.key_pem, _MOUNTED),
        SERVER[0]: (keys.server.certificate_pem, _MOUNTED),
        **{name + SEED: (seed + b"\n", _MOUNTED) for name, seed in keys.seeds.items()},
        USERS: (users.config(keys.hosts, keys.public_keys()).encode(), _MOUNTED),
    }
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(_DIRECTORY_MODE)
        if not (directory / _IGNORE).exists():
            _replaced(directory / _IGNORE, b"*\n", _MOUNTED)
        changed = [name for name, (text, mode) in files.items() if _replaced(directory / name, text, mode)]
        for name in present(directory):
            if name not in files:
                (directory / name).unlink()
                changed.append(name)
    return tuple(changed)


def problems(directory: Path, keys: Keys, now: dt.datetime) -> list[str]:
    """Return what keeps these keys from being used, one line each."""
    found = [f"{name}{SEED} is missing" for name in users.user_names(keys.hosts) if name not in keys.seeds]
    if not keys.hosts:
        found.append("no host has keys")
    for pair, (name, _) in ((keys.authority, AUTHORITY), (keys.server, SERVER)):
        if pair is None:
            found.append(f"{name} is missing, or its key is, or they do not belong together")
        elif pair.ends_within(dt.timedelta(), now):
            found.append(f"{name} has expired")
    if USERS not in present(directory):
        found.append(f"{USERS} is missing")
    elif not found and (directory / USERS).read_bytes() != users.config(keys.hosts, keys.public_keys()).encode():
        found.append(f"{USERS} was not made of these keys, or by another version")
    return found


def _names(directory: Path) -> list[str]:
    with _explained(directory):
        return sorted(file.name for file in directory.iterdir()) if directory.exists() else []


def _is_ours(name: str) -> bool:
    user, dash, _ = name.removesuffix(SEED).partition("-")
    seed = name.endswith(SEED) and user in set(User) and bool(dash) == (user in permissions.PER_HOST)
    return seed or name in {*AUTHORITY, *SERVER, USERS}


def _seed(file: Path) -> bytes:
    with _explained(file):
        held = file.read_bytes().strip()
    try:
        public_key(held)
        host = file.stem.partition("-")[2]
        if host:
            subjects.host_name(host)
    except ValueError as error:
        raise Failure(ExitCode.USAGE, f"{file}: {error}; remove it and complete the directory, or --force") from error
    return held


def _pair(directory: Path, names: tuple[str, str]) -> Pair | None:
    certificate, key = (directory / name for name in names)
    if not certificate.exists() or not key.exists():
        return None
    with _explained(directory):
        try:
            return Pair.read(certificate.read_bytes(), key.read_bytes())
        except ValueError:
            return None


def _replaced(file: Path, text: bytes, mode: int) -> bool:
    """Make the file what it should be, at once; False if it was."""
    if file.exists() and file.read_bytes() == text and file.stat().st_mode & 0o777 == mode:
        return False
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=_UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        Path(name).chmod(mode)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"{error.filename or place}: {error.strerror}") from error
