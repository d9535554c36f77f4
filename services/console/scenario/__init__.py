"""Scenarios: a machine, what happens to it, and what must become of it, as a file that is run over real processes."""

from ._command import scenario
from ._file import ScenarioError, load
from ._run import run_scenario

__all__ = ["ScenarioError", "load", "run_scenario", "scenario"]
