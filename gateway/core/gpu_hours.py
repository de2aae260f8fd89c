"""Hours of GPUs that are paid for whether they are used or not, shared out among those who used them.

Each task's share is by its tokens, input and output together. What the GPUs could have done and were not asked to do is
idle, and a line of its own. Hours are those of the UTC clock, in which prices begin too.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import TypeVar

from msgspec import Struct

from gateway.core.prices import GpuHour

Who = tuple[str, str, str, str]

# (payer, caller, owner, task) of the idle part: no task, paid by the platform.
IDLE: Who = ("platform", "platform", "platform", "")

K = TypeVar("K", bound=tuple[str, ...])


class GpuShare(Struct, frozen=True, kw_only=True):
    """One line of an hour [hour, hour_end) of a model; the lines' `cost_nano` sum to `bill_nano`.

    `day` is the day of the billing timezone in which the hour begins.
    """

    model: str
    hour: datetime
    hour_end: datetime
    day: date
    payer_team: str
    caller_team: str
    owner_team: str
    task: str
    tokens: int
    bill_nano: int
    cost_nano: int
    created_at: datetime


def shares(rate: GpuHour, used: Mapping[Who, int]) -> dict[Who, tuple[int, int]]:
    """(tokens, cost) of everybody who used the hour, and of the idle part, which is there also where it is 0."""
    tokens = {**used, IDLE: max(0, rate.capacity_tokens - sum(used.values()))}
    costs = by_largest_remainder(rate.bill_nano, tokens)
    return {who: (tokens[who], costs[who]) for who in tokens}


def by_largest_remainder(amount: int, weights: Mapping[K, int]) -> dict[K, int]:
    """`amount` split by weight into integers that sum to it.

    Everybody gets the exact share rounded down; what is left goes, one by one, to those who lost most by that, and
    among equals to the first by name. The order of `weights` does not matter. Weights are not negative, and one is more
    than 0.
    """
    whole = sum(weights.values())
    parts = {key: divmod(amount * weight, whole) for key, weight in weights.items()}
    left = amount - sum(part for part, _ in parts.values())
    first = sorted(parts, key=lambda key: (-parts[key][1], key))[:left]
    return {key: part + (key in first) for key, (part, _) in parts.items()}
