"""What the ledger says is used of every budget: from this the fast counters are written anew when they are lost."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core.inference import Intent, Usage
from gateway.core.quotas import Charge, Limit, for_model_call, for_spending, spent, window_start
from gateway.core.task import Per

# (task, caller team) → the limits that hold for its model calls.
LimitsOf = Callable[[str, str], Sequence[Limit]]


class Spending(Struct, frozen=True):
    """The model calls of one task for one key, summed; unsettled ones count at their estimate."""

    task: str
    caller_team: str
    key_id: str
    usage: Usage


class Snapshot(Struct, frozen=True):
    """The ledger at one moment: recorded spending since each start, and the calls that are not recorded yet."""

    since: Mapping[datetime, Sequence[Spending]]
    intents: Sequence[Intent]


class SpendingRecord(Protocol):
    """The ledger, as budgets see it."""

    async def snapshot(self, starts: Iterable[datetime]) -> Snapshot:
        """All of it as of one moment. Raises Unavailable."""


class Counters(Struct, frozen=True):
    """`used` of each counter (its charge has an amount of 0), and what is reserved: reservation → charges."""

    used: Sequence[tuple[Charge, int]]
    reserved: Sequence[tuple[str, Sequence[Charge]]]


async def counters(
    record: SpendingRecord, windows: Iterable[Per], limits_of: LimitsOf, now: datetime, zone: ZoneInfo
) -> Counters:
    """The counters of all current windows of these kinds. Raises Unavailable.

    A smooth rate gets what was spent within its last period, which is never less than its true level.
    """
    starts = {per: window_start(per, now, zone) for per in windows}
    snapshot = await record.snapshot(set(starts.values()))
    used: dict[str, tuple[Charge, int]] = {}
    for per, start in starts.items():
        for spending in snapshot.since[start]:
            limits = [limit for limit in limits_of(spending.task, spending.caller_team) if limit.per == per]
            names = {"task": spending.task, "caller_team": spending.caller_team, "key": spending.key_id}
            for charge in for_spending(limits, names, now, zone):
                before = used[charge.key][1] if charge.key in used else 0
                used[charge.key] = (charge, before + spent(charge.resource, spending.usage))
    reserved = [
        (intent.id, charges)
        for intent in snapshot.intents
        if (charges := for_model_call(limits_of(intent.task, intent.caller_team), intent, zone))
    ]
    return Counters(list(used.values()), reserved)
