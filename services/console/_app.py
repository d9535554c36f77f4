"""The command line: every command with its options, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from shared.pcie import IdentityField
from shared.protocol.requests import Injection, Level, ResetMethod
from shared.runtime import Tls

from . import (
    _asyncapi,
    _doctor,
    _dump,
    _facts,
    _hold,
    _inject,
    _lease,
    _log_level,
    _logs,
    _power,
    _quarantine,
    _reset,
    _status,
    _timeline_command,
    _up,
    keys,
)
from ._exit import HELP, ExitCode, Failure
from ._options import (
    DEFAULT_HOST,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    AnyPort,
    Host,
    Json,
    Nats,
    Port,
    Timeout,
    Yes,
)
from ._output import write_file
from ._run import access as _access
from ._run import ask as _ask
from ._run import confirm as _confirm
from ._run import run as _run
from ._session import Access, Session
from .audit import audit
from .explain import explain
from .replay import demo, replay
from .scenario import scenario

DEFAULT_PORT: Final = 4222
LAB: Final = Path(__file__).parent / "data" / "lab.toml"

app = typer.Typer(
    name="holdfast",
    help="Keeps a PCIe device in its slot while the link above it is taken down on purpose.",
    epilog=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    credential: Annotated[
        Path | None,
        typer.Option(envvar="HOLDFAST_NATS_CREDENTIAL", help="Seed file of the bus's user, as operator.nk."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar="HOLDFAST_NATS_CA", help="Certificate of the authority of the bus: ca.pem.")
    ] = None,
    tls: Annotated[Tls, typer.Option(envvar="HOLDFAST_TLS", help="auto: on, unless the bus is on this machine.")] = (
        Tls.AUTO
    ),
) -> None:
    """Take note of who is asking."""
    _access.set(Access(credential, ca, tls))


@app.command()
def up(
    topology: Annotated[Path, typer.Option(help="Topology file of the simulated machine.")] = LAB,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the bus on 127.0.0.1; 0 takes a free one.")] = (
        DEFAULT_PORT
    ),
    state: Annotated[Path | None, typer.Option(help="Directory that keeps ledger and records; else temporary.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option(resolve_path=True, help="Directory that keeps a log per service, rotated.")
    ] = None,
    host: Annotated[str, typer.Option(envvar="HOLDFAST_HOST", help="Name of the simulated machine.")] = DEFAULT_HOST,
    as_json: Json = False,
) -> None:
    """Run everything on this machine: an embedded NATS server and all services."""
    if not topology.is_file():
        raise Failure(ExitCode.USAGE, f"no topology file {topology}; name one with --topology")
    _run(_up.up(topology, port=port or None, state=state, log_dir=log_dir, host=host, as_json=as_json))


@app.command()
def status(
    nats: Nats = DEFAULT_URL, host: Host = DEFAULT_HOST, as_json: Json = False, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """Show every port, its slot and devices, and every service."""
    _ask(nats, host, timeout, lambda s: _status.status(s, as_json=as_json))


@app.command()
def topology(
    nats: Nats = DEFAULT_URL, host: Host = DEFAULT_HOST, as_json: Json = False, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """Show the tree of functions."""
    _ask(nats, host, timeout, lambda s: _status.topology(s, as_json=as_json))


@app.command()
def leases(
    nats: Nats = DEFAULT_URL, host: Host = DEFAULT_HOST, as_json: Json = False, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """Show the open leases."""
    _ask(nats, host, timeout, lambda s: _status.leases(s, as_json=as_json))


@app.command()
def watch(port: AnyPort = None, nats: Nats = DEFAULT_URL, host: Host = DEFAULT_HOST, as_json: Json = False) -> None:
    """Follow what happens."""
    _ask(nats, host, DEFAULT_TIMEOUT_S, lambda s: _facts.watch(s, port, as_json=as_json))


@app.command()
def history(
    port: AnyPort = None,
    lease: Annotated[str | None, typer.Option(help="Only the facts of this lease, by the whole of its id.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the last ones.")] = None,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
) -> None:
    """Show what happened, as `watch` would have."""
    _ask(nats, host, DEFAULT_TIMEOUT_S,
         lambda s: _facts.history(s, port, lease=lease, limit=limit, as_json=as_json))  # fmt: skip


@app.command()
def logs(
    lease: Annotated[
        str | None, typer.Argument(help="Its lease, or a part of it; the last recovery if none is named.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it is over.")] = False,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
) -> None:
    """Tell one recovery's story: what each service said of it, when, in which step and why."""
    _ask(nats, host, DEFAULT_TIMEOUT_S, lambda s: _logs.logs(s, lease, follow=follow, as_json=as_json))


@app.command()
def reset(
    function: Annotated[str, typer.Argument(help="The function: 0000:3b:00.0, 3b:00.0, or a serial number.")],
    method: Annotated[ResetMethod | None, typer.Option(help="How; else the first that works.")] = None,
    domain: Annotated[bool, typer.Option("--domain", help="Also if it reaches beyond the named device.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show every function and driver it hits.")] = False,
    yes: Yes = False,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Reset a function under a lease, and say what became of it."""
    if not dry_run:
        _confirm(f"Reset {function}?", yes=yes)
    _ask(nats, host, timeout,
         lambda s: _reset.reset(s, function, method=method, domain=domain, dry_run=dry_run, as_json=as_json))  # fmt: skip


@app.command()
def hold(
    port: Port,
    command: Annotated[list[str], typer.Argument(help="After `--`: the command and its arguments.")],
    accept: Annotated[
        list[str] | None, typer.Option(help=f"What may differ afterwards, by commas: {', '.join(IdentityField)}.")
    ] = None,
    quiet_errors: Annotated[
        bool, typer.Option("--quiet-errors", help="Silence SERR# and error reporting of the port meanwhile.")
    ] = False,
    max_s: Annotated[
        float | None, typer.Option("--max", help="Kill the command after so many seconds; --before and --after, too.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Run by sh under the lease before the command, which is not run if this fails.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Run by sh under the lease after the command, however that ended.")
    ] = None,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Hold a port while a command runs that takes its link down: a firmware or FPGA reload."""
    asked = _hold.wanted(
        command, accept=accept or (), quiet_errors=quiet_errors, max_s=max_s, before=before, after=after
    )
    _ask(nats, host, timeout, lambda s: _hold.hold(s, port, asked, as_json=as_json))


@app.command()
def power(
    which: Annotated[_power.Power, typer.Argument(help="on or off")],
    port: Port,
    yes: Yes = False,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Power a slot on or off."""
    if which is _power.Power.OFF:
        _confirm(f"Power off the slot of {port}?", yes=yes)
    _ask(nats, host, timeout, lambda s: _power.power(s, which, port, as_json=as_json))


@app.command()
def inject(
    what: Annotated[Injection | None, typer.Argument(help="What happens.")] = None,
    target: Annotated[str | None, typer.Argument(help="Where: a port or a function.")] = None,
    file: Annotated[Path | None, typer.Option(help="TOML file of `inject` tables, instead of all else.")] = None,
    after: Annotated[float, typer.Option(min=0, help="Seconds from now.")] = 0.0,
    for_s: Annotated[float | None, typer.Option("--for", min=0, help="For how many seconds.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="error, dpc: its name, as MalfTLP, memory_timeout. Repeat.")
    ] = None,
    header: Annotated[str | None, typer.Option(help="error: TLP header, four doublewords in hex.")] = None,
    severity: Annotated[str | None, typer.Option(help="error: fatal or nonfatal.")] = None,
    reason: Annotated[str | None, typer.Option(help="dpc: uncorrectable, err_nonfatal, err_fatal, rp_pio …")] = None,
    source: Annotated[str | None, typer.Option(help="dpc: function whose message triggered.")] = None,
    service: Annotated[str | None, typer.Option(help="interrupts: hotplug, aer or dpc.")] = None,
    state: Annotated[bool | None, typer.Option("--open/--closed", help="mrl: the latch.")] = None,
    speed: Annotated[int | None, typer.Option(min=1, help="degraded_link: 1 is 2.5 GT/s, 2 is 5, 3 is 8 …")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="degraded_link: lanes.")] = None,
    card: Annotated[list[str] | None, typer.Option(help="insert, swap: FUNCTION.FIELD=VALUE. Repeat.")] = None,
    driver: Annotated[list[str] | None, typer.Option(help="driver: FIELD=VALUE. Repeat.")] = None,
    count: Annotated[int, typer.Option(min=0, help="How many errors, lost interrupts or drops (0: no end).")] = 1,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Do to the simulated machine what a lab does to real hardware."""
    if (file is None) == (what is None or target is None):
        raise Failure(ExitCode.USAGE, "inject needs either WHAT and TARGET, or --file")
    options = {
        "after_s": after, "for_s": for_s, "names": name or [], "header": _inject.header_words(header),
        "severity": severity, "reason": reason, "service": service, "state": state, "speed": speed, "width": width,
        "card": _inject.card_fields(card or []), "driver": _inject.driver_fields(driver or []), "count": count,
    }  # fmt: skip

    listed = _inject.from_file(file) if file is not None else ()

    async def run(s: Session) -> None:
        wanted = listed or (await _inject.from_options(s, str(what), str(target), source, options),)
        await _inject.inject(s, wanted, as_json=as_json)

    _ask(nats, host, timeout, run)


@app.command()
def dump(
    function: Annotated[list[str] | None, typer.Argument(help="Functions; all if none is named.")] = None,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Write config spaces as `lspci -xxxx` does: `holdfast dump | lspci -F /dev/stdin -vvv` decodes them."""

    async def run(s: Session) -> None:
        sys.stdout.write(await _dump.dump(s, function or []))

    _ask(nats, host, timeout, run)


@app.command()
def doctor(
    nats: Nats = DEFAULT_URL, host: Host = DEFAULT_HOST, as_json: Json = False, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """Check the bus, the services, the leases, and look for masks that nobody holds."""
    _ask(nats, host, timeout, lambda s: _doctor.doctor(s, as_json=as_json))


@app.command("log-level")
def log_level(
    service: Annotated[str, typer.Argument(help="machine, fabric, hotplug, aer, dpc or coordinator.")],
    level: Annotated[Level, typer.Argument(help="The least severe lines to be written from now on.")],
    instance: Annotated[str | None, typer.Option(help="Only this instance; else all, those that stand by too.")] = None,
    nats: Nats = DEFAULT_URL,
    host: Host = DEFAULT_HOST,
    as_json: Json = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Change what a service writes to its log, while it runs."""
    _log_level.check(service, instance)
    _ask(nats, host, timeout, lambda s: _log_level.log_level(s, service, level, instance=instance, as_json=as_json))


@app.command()
def asyncapi(
    output: Annotated[Path | None, typer.Option(help="The file to write; else stdout.")] = None,
) -> None:
    """Describe all that travels on the bus, as an AsyncAPI document."""
    if output is None:
        sys.stdout.write(_asyncapi.text())
    else:
        write_file(output, _asyncapi.text())


for command in (
    replay,
    demo,
    _timeline_command.timeline,
    explain,
    scenario,
    audit,
):
    app.command()(command)

app.add_typer(_lease.app, name="lease")
app.add_typer(_quarantine.app, name="quarantine")
app.add_typer(keys.app, name="keys")
