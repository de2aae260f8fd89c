"""Which quotas apply to a request or a model call, as charges that the store takes all or none.

Request and concurrency quotas are charged at the door, token and cost budgets just before a model call. Rates (per
second, per minute) are smooth: GCRA with the whole limit as burst. Longer windows follow the calendar of the billing
timezone and start again at its boundaries.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core.errors import GatewayError
from gateway.core.inference import Caller, Intent, RateHeader, Usage
from gateway.core.prices import to_nano
from gateway.core.task import Per, Quota, Resource

# Lua numbers are doubles: the largest limit that is still exact, in the resource's own unit.
MAX_LIMIT = 2**53

_RATE_S = {"second": 1, "minute": 60}
_UNITS = {"requests": "requests", "tokens": "tokens", "cost": "nano-units of cost", "concurrency": "requests"}


class Charge(Struct, frozen=True, kw_only=True):
    """`amount` of a resource, to be taken from one counter.

    `mode` is `gcra` (`period_s` is the emission period of the whole limit), `window` (a counter that ends at
    `ends_at_s`, Unix seconds) or `held` (given back when the inference ends). An `amount` of 0 looks and takes nothing.
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


class Standing(Struct, frozen=True):
    """How far a counter is used: `limit` is what counted here (a share of the charge's while the store is away)."""

    charge: Charge
    limit: int
    used: int
    reset_s: float

    @property
    def remaining(self) -> int:
        """What is left; 0 also where more was used than a limit that has been lowered since."""
        return max(0, self.limit - self.used)


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
    """What one request takes before anything runs. Token budgets are looked at, for the headers, and not taken."""
    names = {"task": task, "caller_team": caller.team, "key": caller.key_id}
    return _one_per_counter(
        _charge(limit, names, 0 if limit.resource == "tokens" else 1, now, zone)
        for limit in limits
        if limit.resource != "cost"
    )


def for_model_call(limits: Iterable[Limit], intent: Intent, zone: ZoneInfo) -> list[Charge]:
    """What a model call takes at its estimate."""
    names = {"task": intent.task, "caller_team": intent.caller_team, "key": intent.key_id}
    return _one_per_counter(
        _charge(limit, names, spent(limit.resource, intent.estimate), intent.created_at, zone)
        for limit in limits
        if limit.resource in ("tokens", "cost")
    )


def for_spending(limits: Iterable[Limit], names: Mapping[str, str], now: datetime, zone: ZoneInfo) -> list[Charge]:
    """The budgets' counters of a task, caller team and key, with nothing to take."""
    return _one_per_counter(
        _charge(limit, names, 0, now, zone) for limit in limits if limit.resource in ("tokens", "cost")
    )


def spent(resource: Resource, usage: Usage) -> int:
    """How much of a resource a usage is; what a GPU-hour will be shared out to counts as cost at once."""
    if resource == "cost":
        return usage.cost_nano + usage.provisional_nano
    return usage.input_tokens + usage.output_tokens


def window_start(per: Per, now: datetime, zone: ZoneInfo) -> datetime:
    """The begin of the window that `now` lies in; of a smooth rate, the begin of the period that ends now."""
    if per in _RATE_S:
        return now - timedelta(seconds=_RATE_S[per])
    if per == "hour":
        return window_end(per, now, zone) - timedelta(hours=1)
    midnight = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return midnight if per == "day" else midnight.replace(day=1)


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


_Refusal = TypeVar("_Refusal", bound=GatewayError)


def refusal(error: type[_Refusal], standing: Standing, retry_after_s: float | None) -> _Refusal:
    """The error for a charge that did not fit. `retry_after_s` is None where it never will."""
    charge = standing.charge
    per = f" per {charge.per}" if charge.per else " at once"
    return error(
        f"The quota of {standing.limit} {_UNITS[charge.resource]}{per} for {charge.scope} "
        f"has {standing.remaining} left; {charge.amount} needed.",
        retry_after_s=retry_after_s,
        scope=charge.scope,
        resource=charge.resource,
        limit=standing.limit,
        remaining=standing.remaining,
        reset_s=round(standing.reset_s, 3),
        per=charge.per,
    )


def rate_headers(standings: Iterable[Standing]) -> tuple[RateHeader, ...]:
    """For requests and for tokens, the quota of which the least is left."""
    tightest: dict[str, Standing] = {}
    for standing in standings:
        resource = standing.charge.resource
        if resource not in ("requests", "tokens"):
            continue
        if resource not in tightest or standing.remaining < tightest[resource].remaining:
            tightest[resource] = standing
    return tuple(RateHeader(name, each.limit, each.remaining, each.reset_s) for name, each in tightest.items())


def _one_per_counter(charges: Iterable[Charge]) -> list[Charge]:
    """Two quotas on one counter (a task's and a team's, say): the smaller limit holds, and is charged once."""
    tightest: dict[str, Charge] = {}
    for charge in charges:
        if charge.key not in tightest or charge.limit < tightest[charge.key].limit:
            tightest[charge.key] = charge
    return list(tightest.values())


def _charge(limit: Limit, names: Mapping[str, str], amount: int, now: datetime, zone: ZoneInfo) -> Charge:
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
