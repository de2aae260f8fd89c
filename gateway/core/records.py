"""What is read back from the durable store, and the ports through which it is read.

The ledger writes an Inference; what comes back is a Run: the same story without the text that was judged.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from gateway.core.audit import TERMINAL, Actor
from gateway.core.inference import NOTHING_USED, Attempt, CacheStatus, Decision, Kind, Usage
from gateway.core.task import Per, Resource


class Run(Struct, frozen=True, kw_only=True):
    """A recorded inference. `decision.output` is None where the store does not keep outputs."""

    id: str
    task: str
    fingerprint: str
    kind: Kind
    caller_team: str
    owner_team: str
    payer_team: str
    received_at: datetime
    decision: Decision
    attempts: tuple[Attempt, ...] = ()
    cache: CacheStatus = "miss"
    duration_ms: float = 0.0
    parent_id: str | None = None
    review_id: str | None = None
    trace_id: str | None = None

    @property
    def usage(self) -> Usage:
        """The sum over all attempts."""
        return sum((attempt.usage for attempt in self.attempts), NOTHING_USED)


class Runs(Protocol):
    """Recorded inferences by id."""

    async def find(self, run_id: str) -> Run | None:
        """The run of that id; None where there is none, or where `run_id` is no id at all. Raises Unavailable."""


class Feedback(Struct, frozen=True, kw_only=True):
    """What a team says of a run: the label that would have been right, a comment, or both. Append-only."""

    id: str
    run_id: str
    team: str
    key_id: str
    created_at: datetime
    label: str | None = None
    comment: str | None = None


class FeedbackStore(Protocol):
    """Where feedback goes."""

    async def add(self, feedback: Feedback) -> None:
        """Returns when it is durable. Raises Unavailable."""


class UsageRow(Struct, frozen=True, kw_only=True):
    """What one team spent on one task with one model.

    `model` is None in the row that counts the inferences themselves: `inferences` is only counted there, calls,
    tokens and cost only in the rows of a model, so that every column may be summed. `cost_nano` holds settled and
    unsettled cost; `unsettled_nano` is the part of it that is an estimate.
    """

    team: str
    task: str
    model: str | None
    inferences: int = 0
    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    unsettled_nano: int = 0


class UsageReport(Protocol):
    """The ledger, summed."""

    async def roll_up(self, start: datetime, end: datetime, team: str | None) -> Sequence[UsageRow]:
        """Rows of the half-open interval [start, end), UTC, by paying team (or of all), sorted.

        Raises InvalidInput where it needs a part of a day of which only the sum is left, Unavailable.
        """


class TeamLimit(Struct, frozen=True, forbid_unknown_fields=True):
    """A quota of everything that a team calls. Money is a decimal string ("200.00"), everything else an integer."""

    resource: Resource
    limit: int | str
    per: Per | None = None


class Team(Struct, frozen=True):
    """A tenant."""

    name: str
    created_at: datetime
    limits: tuple[TeamLimit, ...] = ()


class Teams(Protocol):
    """The tenants. Whatever changes them is written to the audit log as the act of `by`, in one transaction."""

    async def add(self, team: Team, by: Actor = TERMINAL) -> None:
        """Raises Conflict where the name is taken, Unavailable."""

    async def all(self) -> Sequence[Team]:
        """Every team by name. Raises Unavailable."""

    async def set_limits(self, name: str, limits: Sequence[TeamLimit], by: Actor = TERMINAL) -> Team:
        """Replace the team's limits; what was used stays used. Raises NotFound, Unavailable."""
