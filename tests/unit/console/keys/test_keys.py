"""`holdfast keys`: what it writes, what it keeps, and what it refuses."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner, Result

from services.console._app import app
from services.console._exit import ExitCode, Failure
from services.console.keys import _store as store
from services.console.keys._certificates import Pair, new_authority
from services.console.keys._users import config
from shared.protocol.routes import User
from shared.runtime import new_seed, public_key

SEEDS = {"machine-lab", "fabric-lab", "hotplug", "aer", "dpc", "coordinator", "operator", "viewer"}
PAIRS = {"ca.pem", "ca-key.pem", "server.pem", "server-key.pem"}
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, arguments)])


def made(*arguments: str | Path) -> None:
    result = run("init", *arguments)
    assert result.exit_code == 0, result.output


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, Failure)
    assert result.exception.code is ExitCode.USAGE
    return str(result.exception)


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def server(directory: Path) -> Pair:
    return Pair.read((directory / "server.pem").read_bytes(), (directory / "server-key.pem").read_bytes())


def test_everybody_gets_a_key_and_the_server_a_certificate(keys: Path) -> None:
    made(keys)
    assert set(contents(keys)) == {*(f"{name}.nk" for name in SEEDS), *PAIRS, "users.conf", ".gitignore"}
    authority = x509.load_pem_x509_certificate((keys / "ca.pem").read_bytes())
    server(keys).certificate.verify_directly_issued_by(authority)
    assert {"nats", "nats-1", "localhost", "127.0.0.1"} <= set(server(keys).names)


def test_only_the_owner_gets_at_the_keys_and_what_is_mounted_from_there_can_be_read(keys: Path) -> None:
    made(keys)
    assert keys.stat().st_mode & 0o777 == 0o700
    assert (keys / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert (keys / "aer.nk").stat().st_mode & 0o777 == 0o644


def test_the_server_learns_public_keys_and_no_seed(keys: Path) -> None:
    made(keys)
    text = (keys / "users.conf").read_text()
    for name in SEEDS:
        seed = (keys / f"{name}.nk").read_bytes().strip()
        assert public_key(seed) in text
        assert seed.decode() not in text


def test_every_key_is_another(keys: Path) -> None:
    made(keys)
    assert len({(keys / f"{name}.nk").read_bytes() for name in SEEDS}) == len(SEEDS)


def test_nothing_is_overwritten_unless_told_to(keys: Path) -> None:
    made(keys)
    before = contents(keys)
    assert "--if-missing" in refused("init", keys)
    assert contents(keys) == before
    made(keys, "--force")
    after = contents(keys)
    assert all(after[f"{name}.nk"] != before[f"{name}.nk"] for name in SEEDS)


def test_force_leaves_no_key_of_a_host_that_is_no_more(keys: Path) -> None:
    made(keys, "--hosts", "a,b")
    made(keys, "--hosts", "a", "--force")
    assert not (keys / "machine-b.nk").exists()


@pytest.mark.parametrize("arguments", [(), ("--force",), ("--if-missing",)])
def test_a_directory_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    (tmp_path / "backup.nk").write_text("of another program")
    before = contents(tmp_path)
    assert "backup.nk" in refused("init", tmp_path, *arguments)
    assert contents(tmp_path) == before
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("left", [".gitignore", ".holdfast-keys-abc"])
def test_a_directory_with_what_a_crash_left_of_the_first_file_is_as_good_as_empty(keys: Path, left: str) -> None:
    keys.mkdir()
    (keys / left).write_text("")
    made(keys)


def test_force_keeps_what_is_not_ours(keys: Path) -> None:
    made(keys, "--hosts", "a,b")
    others = {".gitignore": b"*.nk\n", "backup.nk": b"?", "aer-a.nk": b"?", "machine.nk": b"?", "readme": b"?"}
    for name, text in others.items():
        (keys / name).write_bytes(text)
    made(keys, "--hosts", "a", "--force")
    assert others.items() <= contents(keys).items()
    assert not (keys / "machine-b.nk").exists()


@pytest.mark.parametrize("arguments", [(), ("--hosts", "a,b", "--names", "bus.example")])
def test_completing_what_is_complete_changes_nothing(keys: Path, arguments: tuple[str, ...]) -> None:
    made(keys, *arguments)
    before = contents(keys)
    made(keys, "--if-missing")
    assert contents(keys) == before


def test_a_host_is_added_and_all_other_keys_are_kept(keys: Path) -> None:
    made(keys, "--hosts", "a")
    before = contents(keys)
    made(keys, "--hosts", "b", "--if-missing")
    after = contents(keys)
    assert set(after) - set(before) == {"machine-b.nk", "fabric-b.nk"}
    assert {name for name in before if before[name] != after[name]} == {"users.conf"}
    assert '"pcie.a.inject"' in after["users.conf"].decode()
    assert '"pcie.b.inject"' in after["users.conf"].decode()


def test_a_server_is_added_and_the_authority_is_kept(keys: Path) -> None:
    made(keys, "--names", "one")
    authority = (keys / "ca.pem").read_bytes()
    made(keys, "--names", "two,10.0.0.1", "--if-missing")
    assert {"one", "two", "10.0.0.1"} <= set(server(keys).names)
    assert (keys / "ca.pem").read_bytes() == authority


@pytest.mark.parametrize(
    "lost", [*(f"{name}.nk" for name in sorted(SEEDS)), "server.pem", "server-key.pem", "users.conf"]
)
def test_a_crash_half_way_is_completed(keys: Path, lost: str) -> None:
    made(keys)
    (keys / lost).unlink()
    if lost not in {"machine-lab.nk", "fabric-lab.nk"}:
        assert "--if-missing" in refused("show", keys)
    made(keys, "--if-missing")
    assert run("show", keys).exit_code == 0


@pytest.mark.parametrize("lost", ["ca.pem", "ca-key.pem"])
def test_a_new_authority_is_never_made_behind_the_operators_back(keys: Path, lost: str) -> None:
    made(keys)
    (keys / lost).rename(keys / "elsewhere")
    assert lost in refused("init", keys, "--if-missing")


def test_a_damaged_key_is_named_and_never_shown(keys: Path) -> None:
    made(keys)
    seed = (keys / "aer.nk").read_bytes()
    (keys / "aer.nk").write_bytes(seed[:-8] + b"AAAAAAA\n")
    told = refused("init", keys, "--if-missing")
    assert "aer.nk" in told
    assert seed[:20].decode() not in told


def test_a_certificate_is_renewed_before_it_expires(keys: Path) -> None:
    store.write(keys, store.complete(store.Keys((), {}), ("lab",), ("nats",), 31, NOW))
    first = (keys / "server.pem").read_bytes()
    later = NOW + dt.timedelta(days=2)
    store.write(keys, store.complete(store.read(keys), ("lab",), (), 31, later))
    assert (keys / "server.pem").read_bytes() != first
    assert store.problems(keys, store.read(keys), NOW + dt.timedelta(days=60)) == ["server.pem has expired"]


def test_a_certificate_of_another_authority_is_replaced(keys: Path) -> None:
    made(keys)
    other = new_authority(dt.datetime.now(dt.UTC))
    (keys / "ca.pem").write_bytes(other.certificate_pem)
    (keys / "ca-key.pem").write_bytes(other.key_pem)
    made(keys, "--if-missing")
    assert other.issued(server(keys))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--hosts", "a b"), "--hosts"),
        (("--hosts", "a.b"), "--hosts"),
        (("--hosts", ","), "--hosts"),
        (("--names", ""), "--names"),
        (("--names", "ümlaut"), "--names"),
        (("--force", "--if-missing"), "choose one"),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing_behind(keys: Path, arguments: tuple[str, ...], named: str) -> None:
    assert named in refused("init", keys, *arguments)
    assert not keys.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused("init", tmp_path / "file" / "keys")


def test_show_lists_users_and_never_a_seed(keys: Path) -> None:
    made(keys)
    shown = run("show", keys, "--json").output
    rows = [json.loads(line) for line in shown.splitlines()]
    assert {row["user"] for row in rows[:-1]} == SEEDS
    keys_of = {row["user"]: row["public_key"] for row in rows[:-1]}
    machine = next(row for row in rows if row.get("user") == "machine-lab")["may"]["publish"]
    inboxes = {f"_INBOX.{keys_of[asker]}.>" for asker in ("coordinator", "hotplug")}
    assert {subject for subject in machine if subject.startswith("_INBOX")} == inboxes
    assert "pcie.lab.inject" in next(row for row in rows if row.get("user") == "operator")["may"]["publish"]
    assert "nats" in rows[-1]["server"]
    assert not [name for name in SEEDS if (keys / f"{name}.nk").read_text().strip() in shown]


def test_show_says_when_there_is_nothing_or_something_else(keys: Path) -> None:
    assert "keys init" in refused("show", keys)
    made(keys)
    (keys / "users.conf").write_text("accounts {}")
    assert "users.conf" in refused("show", keys)


def test_the_table_of_users_is_the_same_whenever_it_is_made() -> None:
    public = {name: public_key(new_seed()) for name in SEEDS}
    assert config(("lab",), public) == config(("lab",), dict(reversed(public.items())))
    assert len(User) == len(SEEDS)
