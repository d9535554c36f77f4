"""A plain HTTP client for tests: the standard library's, in a thread, so that the server under test may turn."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Final

TIMEOUT_S: Final = 30.0  # bound for a heavily loaded machine


async def get(url: str) -> tuple[int, str, str]:
    """Return status, content type and text."""
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - always http
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers["Content-Type"], refused.read().decode()
