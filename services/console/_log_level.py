"""`log-level` has a service write more or less of its log, at once, in all its instances or in one."""

from __future__ import annotations

import asyncio

from shared.protocol import subjects
from shared.protocol.requests import Level, LogLevel, LogLevelReply, SetLogLevel

from ._exit import ExitCode, Failure
from ._fleet import SERVICES
from ._output import print_json, print_table
from ._services import instances
from ._session import Session


def check(service: str, instance: str | None) -> None:
    """Refuse what cannot be the name of a service or an instance, before anybody is asked."""
    if service not in SERVICES:
        raise Failure(ExitCode.USAGE, f"{service!r} is no service; there are {', '.join(sorted(SERVICES))}")
    if instance is not None:
        try:
            subjects.host_name(instance)
        except ValueError as error:
            raise Failure(ExitCode.USAGE, str(error).replace("a host name", "the name of an instance")) from error


async def log_level(session: Session, service: str, level: Level, *, instance: str | None, as_json: bool) -> None:
    """Ask the instances, and show what each wrote before. Those that did as told are shown also if one did not."""
    named = await instances(session, service) if instance is None else (instance,)
    if not named:
        raise Failure(
            ExitCode.UNREACHABLE,
            f"no {service} answers for host {session.host!r}; check --host, and `holdfast doctor`",
        )
    answers = await asyncio.gather(*(_ask(session, service, name, level) for name in named))
    changed = [(name, answer) for name, answer in zip(named, answers, strict=True) if isinstance(answer, LogLevel)]
    if as_json:
        for name, answer in changed:
            print_json({"service": service, "instance": name, "level": answer.level, "was": answer.was})
    else:
        rows = [(service, name, answer.level, answer.was) for name, answer in changed]
        print_table(("SERVICE", "INSTANCE", "LEVEL", "WAS"), rows, empty="nothing was changed")
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        raise failures[0]


async def _ask(session: Session, service: str, instance: str, level: Level) -> LogLevel | Failure:
    subject = subjects.log_level(service, instance)
    try:
        answer: LogLevel = await session.ask(
            subject, SetLogLevel(level=level), LogLevelReply, whom=f"instance {instance} of {service}", what="log-level"
        )
    except Failure as failure:
        return failure
    return answer
