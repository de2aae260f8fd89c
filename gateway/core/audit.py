"""Administrative acts: who did what to which key or team. The record is durable, and nothing is ever changed in it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from msgspec import Struct

ActName = Literal[
    "key_created",
    "key_rotated",
    "key_revoked",
    "team_created",
    "team_limited",
    "price_corrected",
    "ledger_removed",
    "review_read",
    "reviews_exported",
    "webhook_set",
    "webhook_rotated",
    "webhook_removed",
    "webhooks_replayed",
    "subject_erased",
]


class Actor(Struct, frozen=True):
    """A key of a team, or neither for somebody at a terminal, who has the database itself."""

    team: str | None = None
    key_id: str | None = None

    def __str__(self) -> str:
        return f"{self.team} ({self.key_id})" if self.key_id else "terminal"


TERMINAL = Actor()


class Act(Struct, frozen=True, kw_only=True):
    """One act. `subject` is the name of the team or the id of the key that it was done to."""

    id: str
    at: datetime
    by: Actor
    act: str
    subject: str
    detail: Mapping[str, Any]


class AuditLog(Protocol):
    """The acts, which are written in the transactions of what they record."""

    async def latest(self, limit: int, before: str | None = None) -> Sequence[Act]:
        """The newest acts first, at most `limit` of them; with `before`, those older than the act of that id.

        Raises Unavailable.
        """
