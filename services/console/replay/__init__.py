"""A failure out of a kernel log, run again: what that kernel did, beside what Holdfast does."""

from ._command import demo, replay
from ._verdicts import Fate, holdfast_fate

__all__ = ["Fate", "demo", "holdfast_fate", "replay"]
