"""One host of a deployment, as its operator sees it through the `holdfast` command."""

from __future__ import annotations

import datetime as dt
import tempfile
from typing import Any, Final, NamedTuple

from .deployment import Deployment

PORT: Final = "0000:00:02.0"  # of the default topology: contains errors, has slot 41
CARD: Final = ("0000:3b:00.0", "0000:3b:00.1")  # the two functions behind it
DRIVER_S: Final = 40.0  # a loaded machine needs that long to run a few commands; a driver is allowed 60
_RECOVERY_S: Final = 150.0
_CONTAINED: Final = """
[[inject]]
what = "driver"
target = "{card}"
driver = {{name = "mlx5_core", delay_s = {{error_detected = {driver_s}}}}}

[[inject]]
what = "dpc"
target = "{port}"
reason = "uncorrectable"
"""


class Recovered(NamedTuple):
    """A recovery that is over."""

    began: dt.datetime
    ended: dt.datetime
    outcome: str


class Host:
    """Asks and injects; each method is one command, or as many as it takes to see something happen."""

    def __init__(self, deployment: Deployment, name: str = "lab") -> None:
        self.name = name
        self._deployment = deployment

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed; return what it prints."""
        code, out, err = self._deployment.holdfast(*arguments, "--host", self.name)
        assert code == 0, f"{arguments}: {code} {err}{out}"
        return out

    def asked(self, *arguments: str) -> list[Any]:
        return self._deployment.asked(*arguments, "--host", self.name)

    def generations(self) -> dict[str, int]:
        """Return the generation of every registered device: it goes up with every loss."""
        (status,) = self.asked("status")
        return {device["function"]: device["generation"] for port in status["ports"] for device in port["devices"]}

    def masked(self) -> list[str]:
        """Return the ports whose slot is masked."""
        (status,) = self.asked("status")
        return [port["port"] for port in status["ports"] if port["masked"]]

    def owner(self, service: str) -> str | None:
        """Return the instance that owns the host in this role."""
        (status,) = self.asked("status")
        (found,) = [each["owner"] for each in status["services"] if each["service"] == service]
        return None if found is None else str(found).partition(":")[0]

    def contain(self, *, driver_s: float = 0.0) -> str:
        """Let the port contain an error; return the lease of the recovery that follows.

        The card's driver takes `driver_s` before the reset, so that something can happen in the middle.
        """
        known = set(self._leases())
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(_CONTAINED.format(port=PORT, card=CARD[0], driver_s=driver_s))
            file.flush()
            self.run("inject", "--file", file.name)

        def started() -> str | None:
            return next((lease for lease in self._leases() if lease not in known), None)

        return self._deployment.eventually(started, f"a recovery on {self.name}")

    def closed(self, lease: str) -> Recovered:
        """Wait until the recovery is closed; return when it began and ended, and what became of the functions."""

        def look() -> Recovered | None:
            told = {fact["what"]: fact for fact in self.asked("history", "--lease", lease)}
            if "recovery.closed" not in told:
                return None
            began, ended = (dt.datetime.fromisoformat(told[f"recovery.{what}"]["at"]) for what in ("started", "closed"))
            return Recovered(began, ended, str(told["recovery.closed"]["data"]))

        return self._deployment.eventually(look, f"lease {lease} of {self.name} closed", _RECOVERY_S)

    def _leases(self) -> list[str]:
        return [fact["lease"] for fact in self.asked("history") if fact["what"] == "recovery.started"]


def now() -> dt.datetime:
    """Return the time of day, which all containers of one machine share."""
    return dt.datetime.now(dt.UTC)
