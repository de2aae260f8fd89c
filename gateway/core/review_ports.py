"""The doors through which reviews are kept and read. Their one implementation is SQL."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from msgspec import Struct

from gateway.core.audit import Actor
from gateway.core.reviews import LEASE, Event, Item, Outcome, Reviewer, Rule, State


class Filter(Struct, frozen=True, kw_only=True):
    """Which items are listed: at most `limit`, newest first, older than the one of the id `before`. `lease_key`: those
    that this key has on lease.
    """

    owner_team: str | None = None
    task: str | None = None
    state: State | None = None
    lease_key: str | None = None
    before: str | None = None
    limit: int = 100


class Question(Struct, frozen=True, kw_only=True):
    """What is judged. `input` is None once it was erased or its retention ended. `stages` are the attempts' views."""

    input: Mapping[str, Any] | None
    label: str | None
    reason: str | None
    thread_id: str | None
    stages: tuple[Mapping[str, Any], ...] = ()


class Depth(Struct, frozen=True, kw_only=True):
    """The queue of a task: how many wait in each state, since when, and how many are due within a quarter of an hour
    or overdue.
    """

    task: str
    open: int = 0
    leased: int = 0
    escalated: int = 0
    oldest_at: datetime | None = None
    at_risk: int = 0


class RunOutcome(Struct, frozen=True, kw_only=True):
    """What became of a held run. `final`: told to the caller, or about to be; only an appeal or a check changes it."""

    review_id: str
    state: State
    outcome: Outcome | None
    policies: tuple[str, ...]
    reason: str | None
    decided_at: datetime | None
    due_at: datetime
    revision: int
    runs: int
    final: bool


class ReviewQueue(Protocol):
    """Where questions change. Every method is one transaction; of two that want the same item, one waits."""

    async def take(
        self,
        by: Reviewer,
        now: datetime,
        token: str,
        task: str | None = None,
        *,
        escalated: bool = False,
        lasting: timedelta = LEASE,
    ) -> Item | None:
        """Lease the first in the queue that this reviewer may judge; None where there is none, or the reviewer has
        LEASES already. Raises Unavailable.
        """

    async def known(self, by: Reviewer, task: str) -> Item | None:
        """A known item of the task that this reviewer has not judged. Raises Unavailable."""

    async def change(self, review_id: str, rule: Rule) -> Item:
        """Lock the item, apply the rule, and write all that it says. Raises what the rule raises; NotFound,
        Unavailable.
        """

    async def put(self, item: Item, inference_id: str, input: Mapping[str, Any], subject_id: str | None) -> None:
        """A question that is its own root, such as a sampled one, with its text. Raises Unavailable."""


class ReviewBook(Protocol):
    """What there is to read of them."""

    async def find(self, review_id: str) -> Item | None:
        """The item of that id, or the one that the run with that review id joined. Raises Unavailable."""

    async def question(self, item: Item, by: Actor, now: datetime) -> Question:
        """What is judged; that it was read is in the audit log. Raises Unavailable."""

    async def history(self, review_id: str) -> Sequence[Event]:
        """Its life so far, oldest first. Raises Unavailable."""

    async def listed(self, wanted: Filter) -> Sequence[Item]:
        """Items of every kind. Raises Unavailable."""

    async def depth(self, owner_team: str, now: datetime) -> Sequence[Depth]:
        """The queues of a team's tasks, by task. Raises Unavailable."""

    async def outcome(self, review_id: str, now: datetime) -> RunOutcome | None:
        """What became of the run that has this review id. Raises Unavailable."""
