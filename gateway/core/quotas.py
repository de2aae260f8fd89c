"""Which quotas apply to a request or a model call, as charges that the store takes all or none.

Request and concurrency quotas are charged at the door, token and cost budgets just before a model call. Rates (per
second, per minute) are smooth: GCRA with the whole limit as burst. Longer windows follow the calendar of the billing
timezone and start again at its boundaries.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core.inference import Caller, Intent, Usage
from gateway.core.prices import to_nano
from gateway.core.task import Per, Quota, Resource

# Lua numbers are doubles: the largest limit that is still exact, in the resource's own unit.
MAX_LIMIT = 2**53

_RATE_S = {"second": 1, "minute": 60}


class Charge(Struct, frozen=True, kw_only=True):
    """`amount` of a resource, to be taken from one counter.

    `mode` is `gcra` (`period_s` is the emission period of the whole limit), `window` (a counter that ends at
    `ends_at_s`, Unix seconds) or `held` (given back when the inference ends).
    """

    key: str
    resource: Resource
    scope: str
    per: Per | None
    limit: int
    amount: int
    mode: Literal["gcra", "window", "held"]
    period_s: int = 0
    ends_at_s: int = 0


class Limit(Struct, frozen=True):
    """A declared quota with its limit as an integer (cost: nano-dollars)."""

    resource: Resource
    limit: int
    per: Per | None
    scope: tuple[str, ...]


def limit_of(quota: Quota) -> Limit:
    """The quota in integers. Raises ValueError with what is wrong."""
    if quota.resource == "cost":
        limit = to_nano(str(quota.limit)) if isinstance(quota.limit, str) else None
        if limit is None:
            raise ValueError('a cost limit is a decimal in quotes, such as "200.00"')
    elif isinstance(quota.limit, int):
        limit = quota.limit
    else:
        raise ValueError(f"a limit of {quota.resource} is an integer")
    if not 0 <= limit < MAX_LIMIT:
        raise ValueError("the limit is negative, or above what is counted exactly (2^53; for cost about 9 million)")
    if (quota.per is None) != (quota.resource == "concurrency"):
        raise ValueError("`per` names the window; only concurrency has none")
    if not quota.scope:
        raise ValueError("`scope` names whose counter it is: task, caller_team, key, or several")
    return Limit(quota.resource, limit, quota.per, quota.scope)


def at_the_door(limits: Iterable[Limit], task: str, caller: Caller, now: datetime, zone: ZoneInfo) -> list[Charge]:
    """What one request takes before anything runs."""
    names = {"task": task, "caller_team": caller.team, "key": caller.key_id}
    return [_charge(limit, names, 1, now, zone) for limit in limits if limit.resource in ("requests", "concurrency")]


def for_model_call(limits: Iterable[Limit], intent: Intent, zone: ZoneInfo) -> list[Charge]:
    """What a model call takes at its estimate. The paying team is the one whose budget is charged."""
    names = {"task": intent.task, "caller_team": intent.caller_team, "key": intent.key_id}
    return [
        _charge(limit, names, spent(limit.resource, intent.estimate), intent.created_at, zone)
        for limit in limits
        if limit.resource in ("tokens", "cost")
    ]


def spent(resource: Resource, usage: Usage) -> int:
    """How much of a resource a usage is."""
    if resource == "cost":
        return usage.cost_nano
    return usage.input_tokens + usage.output_tokens


def window_end(per: Per, now: datetime, zone: ZoneInfo) -> datetime:
    """The end of the calendar window that `now` lies in, as an instant in UTC terms; windows are half-open."""
    local = now.astimezone(zone)
    if per == "hour":
        # Counted on the instant, not on the wall clock: an hour stays an hour while the clocks change.
        return (
            now
            + timedelta(hours=1)
            - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        )
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if per == "day":
        return midnight + timedelta(days=1)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def _charge(limit: Limit, names: dict[str, str], amount: int, now: datetime, zone: ZoneInfo) -> Charge:
    scope = ",".join(f"{part}={names[part]}" for part in sorted(limit.scope))
    key = f"{limit.resource}:{limit.per or 'now'}:{scope}"
    per = limit.per
    if per is None:
        return Charge(
            key=key, resource=limit.resource, scope=scope, per=per, limit=limit.limit, amount=amount, mode="held"
        )
    if per in _RATE_S:
        return Charge(
            key=key, resource=limit.resource, scope=scope, per=per, limit=limit.limit, amount=amount,
            mode="gcra", period_s=_RATE_S[per],
        )  # fmt: skip
    ends_at_s = int(window_end(per, now, zone).timestamp())
    return Charge(
        key=f"{key}:{ends_at_s}", resource=limit.resource, scope=scope, per=per, limit=limit.limit, amount=amount,
        mode="window", ends_at_s=ends_at_s,
    )  # fmt: skip
