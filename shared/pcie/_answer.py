"""What a register read returns: a value, or no answer.

A read that is not completed returns all ones (PCIe r6.2 §2.3.2). That is not a value: a status register of all ones
does not say "every error happened" (P9). So the absence of an answer has a type of its own, and using it as a number
or a truth value raises where it happens instead of misleading later.
"""

from __future__ import annotations

from typing import Final, NoReturn, TypeAlias, TypeGuard


class NoAnswer:
    """The type of NO_ANSWER. It refuses to be true, false or a number."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        raise TypeError("NO_ANSWER is neither true nor false: ask `answered(value)` first")

    def __repr__(self) -> str:
        return "NO_ANSWER"


NO_ANSWER: Final = NoAnswer()

Value: TypeAlias = int | NoAnswer


def answered(value: Value) -> TypeGuard[int]:
    """Tell whether a read was answered."""
    return not isinstance(value, NoAnswer)


def all_ones(width: int) -> int:
    """Return what an unanswered read of `width` bytes looks like on the wire."""
    return (1 << 8 * width) - 1
