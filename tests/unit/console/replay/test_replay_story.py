"""What a person reads while a recovery runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.console._story import sentence
from shared.pcie import Address
from shared.protocol.facts import Fact, What


def fact(what: What, cause: str | None = None, **data: Any) -> Fact:
    return Fact(
        what=what,
        host="lab",
        port=Address.parse("0004:00:00.0"),
        service="x",
        seq=1,
        at=datetime(2024, 11, 22, tzinfo=UTC),
        cause=cause,
        data=data,
    )


@pytest.mark.parametrize("what", list(What))
def test_every_fact_can_be_told_or_passed_over_whatever_it_carries(what: What) -> None:
    told = sentence(fact(what, driver="nvme"))

    assert told is None or "0004:00:00.0" in told


def test_a_vote_names_function_driver_vote_and_time() -> None:
    told = sentence(
        fact(
            What.RECOVERY_VOTE,
            function="0004:01:00.0",
            driver="mlx5_core",
            step="error_detected",
            vote="need_reset",
            took_s=2.365,
        )
    )

    assert told == "0004:01:00.0 mlx5_core: error_detected → need_reset after 2.37 s".replace("2.37", f"{2.365:.2f}")


def test_a_function_without_a_driver_is_passed_over() -> None:
    assert sentence(fact(What.RECOVERY_VOTE, step="resume", vote="none", driver=None)) is None


def test_the_end_of_a_recovery_names_every_verdict() -> None:
    told = sentence(fact(What.RECOVERY_CLOSED, verdicts={"0004:01:00.1": "kept", "0004:01:00.0": "kept"}))

    assert told == "0004:00:00.0: recovery closed: 0004:01:00.0 kept, 0004:01:00.1 kept"


@pytest.mark.parametrize(
    ("told", "sentence_of"),
    [
        (fact(What.LEASE_FIRMWARE_ANSWERED, status=0x80), "0004:00:00.0: the firmware is told that all recovered"),
        (fact(What.LEASE_FIRMWARE_ANSWERED, status=0x81), "0004:00:00.0: the firmware is told of a failure"),
        (fact(What.QUARANTINE_ENTERED, why="unstable_link", held_by="dpc"), "0004:00:00.0: quarantined: unstable link"),
        (fact(What.QUARANTINE_LIFTED, by="operator"), "0004:00:00.0: quarantine lifted by operator"),
        (fact(What.RECOVERY_BROKEN, by="operator", step="link"), "0004:00:00.0: recovery broken by operator"),
    ],
    ids=["recovered", "failed", "quarantined", "lifted", "broken"],
)
def test_firmware_quarantine_and_breaking_are_told(told: Fact, sentence_of: str) -> None:
    assert sentence(told) == sentence_of
