"""The compose files, without an engine: what they ask of the environment, the services know of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.runtime import Settings

DEPLOY = Path(__file__).parents[3] / "deploy"
VARIABLE = re.compile(r"\bHOLDFAST_[A-Z0-9_]+")


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.yaml")), ids=lambda file: file.name)
def test_a_variable_of_compose_in_the_shell_keeps_no_service_from_starting(file: Path) -> None:
    """A service refuses each HOLDFAST_ name that it does not know; a developer may have exported those of compose."""
    own = {"HOLDFAST_TLS": "on", "HOLDFAST_REPLICAS": "3", "HOLDFAST_LOG_LEVEL": "info", "HOLDFAST_HEALTH": "off"}
    named = set(VARIABLE.findall(file.read_text()))
    assert "HOLDFAST_KEYS" in named
    path_like = dict.fromkeys(named - {"HOLDFAST_NATS_URL", "HOLDFAST_HOSTS", *own}, "4222")
    Settings.from_env("fabric", {**path_like, **{name: own[name] for name in own.keys() & named}})
