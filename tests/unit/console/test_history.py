"""`history`, where there is nothing to show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from services.console._exit import ExitCode, Failure
from services.console._facts import history
from services.console._session import Session
from shared.protocol.facts import Fact


class Empty:
    """A session on a bus that has stored nothing; it is its own bus."""

    host = "lab"

    @property
    def bus(self) -> Empty:
        return self

    async def facts(self, *_asked: Any) -> AsyncIterator[Fact]:
        """Yield nothing."""
        stored: tuple[Fact, ...] = ()
        for fact in stored:
            yield fact


async def test_a_lease_of_which_no_fact_tells_is_named_instead_of_silence() -> None:
    with pytest.raises(Failure, match="host 'lab': no fact names a lease 'r-9'") as told:
        await history(cast("Session", Empty()), None, lease="r-9", limit=None, as_json=False)
    assert told.value.code is ExitCode.ABSENT


async def test_p10_a_history_without_facts_says_that_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    await history(cast("Session", Empty()), None, lease=None, limit=None, as_json=True)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing has happened there so far\n")
