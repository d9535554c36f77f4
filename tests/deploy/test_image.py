"""Issue 3, must show 5: what is in the image, as whom it runs, and where it writes. `pytest -s` shows the figures."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import pytest

from tests.deploy import engine
from tests.deploy.deployment import Deployment

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

SERVICE: Final = "hotplug"
USER: Final = "10001"
# What the engine itself makes for its mounts before the container runs.
MOUNT_POINTS: Final = ("/run", "/run/secrets", "/etc", "/etc/holdfast")
INIT: Final = frozenset({"/sbin", "/sbin/docker-init", "/usr", "/usr/sbin", "/usr/sbin/docker-init"})
# A process may have ended before it is looked at.
EVERY_PROCESS: Final = """
for process in /proc/[0-9]*; do grep -E '^(Name|Uid|Cap...|NoNewPrivs):' $process/status 2>/dev/null && echo; done; true
"""
MODULES_UNCOMPILED: Final = """
import importlib, os, sys
importlib.import_module("services.{service}.__main__")
files = [getattr(module, "__cached__", None) for module in list(sys.modules.values())]
print(*[file for file in files if file and not os.path.exists(file)], sep="\\n", end="")
"""


def test_the_image_holds_no_installer_and_nothing_of_where_it_was_built(image: str) -> None:
    shown = engine.docker("run", "--rm", image, "sh", "-c", "ls /opt/holdfast/bin; ls /; env")
    assert "pip" not in shown.replace("pipes", "").lower()
    assert "wheels" not in shown
    say(f"image size: {engine.inspect(image)['Size'] / 1e6:.0f} MB, of it Holdfast {_own_size(image) / 1e6:.0f} MB")


def test_nothing_is_left_to_be_compiled_at_run_time(image: str) -> None:
    script = MODULES_UNCOMPILED.format(service=SERVICE)
    assert engine.docker("run", "--rm", image, "python", "-c", script) == ""


def test_no_service_is_root_or_has_any_privilege(lab: Deployment) -> None:
    for service in set(lab.services()) - {"nats"}:
        found = lab.execute(service, "sh", "-c", EVERY_PROCESS).split("\n\n")
        processes = [dict(line.split(":\t", 1) for line in lines.splitlines()) for lines in found if lines.strip()]
        assert {"docker-init", "python"} <= {status["Name"] for status in processes}, service
        for status in processes:
            assert set(status["Uid"].split()) == {USER}, (service, status)
            assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}, (service, status)
            assert status["NoNewPrivs"] == "1", (service, status)
    say(f"user of every service: {USER}; no capabilities, no new privileges")


def test_no_service_writes_outside_its_volumes(lab: Deployment) -> None:
    for service in lab.services():
        inspected = engine.inspect(lab.container(service))
        assert inspected["HostConfig"]["ReadonlyRootfs"], service
        changes = {line.split(maxsplit=1)[1] for line in engine.docker("diff", inspected["Id"]).splitlines()}
        mounts = {mount["Destination"] for mount in inspected["Mounts"]}
        made = {parent for mount in mounts for parent in MOUNT_POINTS if mount.startswith(f"{parent}/")}
        assert changes <= mounts | made | _made_by_the_engine(service), (service, changes)
    say("docker diff of every service: mount points only")


def test_everything_is_published_on_this_machine_only(lab: Deployment) -> None:
    for service in lab.services():
        ports: dict[str, Any] = engine.inspect(lab.container(service))["NetworkSettings"]["Ports"]
        published = [each["HostIp"] for bindings in ports.values() for each in bindings or ()]
        assert set(published) <= {"127.0.0.1"}, service


def test_how_soon_a_service_is_ready(lab: Deployment) -> None:
    """Shown, not judged."""
    for service in lab.services():
        if service == "nats":
            continue
        started = dt.datetime.fromisoformat(lab.state(service)["StartedAt"][:26] + "+00:00")
        ready = next(line["at"] for line in lab.log(service) if line["event"] == "ready")
        say(f"{service}: ready {(dt.datetime.fromisoformat(ready) - started).total_seconds():.1f} s after its start")


def test_a_service_is_given_longer_to_end_than_it_takes_at_most(lab: Deployment) -> None:
    from shared.runtime import _service  # noqa: PLC0415 - what it takes is its own affair

    grace = engine.inspect(lab.container("coordinator"))["Config"]["StopTimeout"]
    assert grace > _service.STOP_S + _service._CANCEL_S + 5


def _made_by_the_engine(service: str) -> frozenset[str]:
    return frozenset({"/etc/nats"}) if service == "nats" else INIT


def _own_size(image: str) -> int:
    """Return the bytes of the layers above the base image."""
    layers = engine.docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image)
    sizes = [line.split(" ", 1) for line in layers.splitlines()]
    return sum(int(size) for size, made in sizes if "holdfast" in made)


def say(figure: str) -> None:
    """Show a figure for the closing note."""
    print(f"\n  {figure}")  # noqa: T201 - `make test-deploy` shows it
