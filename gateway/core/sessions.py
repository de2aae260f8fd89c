"""What the reviewer's page keeps between two requests: who signed in, and what each reviewer was shown today."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Protocol


class Sessions(Protocol):
    """Shared by all processes and short-lived. Who loses it signs in again."""

    async def open(self, name: str, key_id: str, lasting: timedelta) -> None:
        """Remember which key the session of that name was opened with. Raises Unavailable."""

    async def key_id(self, name: str) -> str | None:
        """That key, or None where there is no such session, or no longer. Raises Unavailable."""

    async def close(self, name: str) -> None:
        """Forget it. Raises Unavailable."""


class Exposure(Protocol):
    """How many texts of each severity a reviewer revealed on a day. For their own eyes: it protects them."""

    async def add(self, key_id: str, day: date, severity: int, review_id: str) -> None:
        """One more, counted once however often it is revealed that day. Raises Unavailable."""

    async def of(self, key_id: str, day: date) -> Mapping[int, int]:
        """Counts by severity, 1 to 3. Raises Unavailable."""
