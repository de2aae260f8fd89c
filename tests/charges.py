"""Charges and settlements as short as tests want them."""

import time

from gateway.core.inference import Usage
from gateway.core.meter import Settlement
from gateway.core.quotas import Charge
from gateway.core.task import Per, Resource


def rate(
    limit: int,
    amount: int = 1,
    *,
    key: str = "rate",
    resource: Resource = "requests",
    period_s: int = 60,
    per: Per = "minute",
) -> Charge:
    """A smooth rate."""
    return Charge(
        key=key, resource=resource, scope="task=t", per=per, limit=limit, amount=amount, mode="gcra", period_s=period_s
    )


def window(
    limit: int,
    amount: int = 1,
    *,
    key: str = "window",
    resource: Resource = "requests",
    ends_in_s: int = 3600,
) -> Charge:
    """A counter of a calendar window."""
    ends_at_s = int(time.time()) + ends_in_s
    return Charge(
        key=key, resource=resource, scope="task=t", per="day", limit=limit, amount=amount, mode="window",
        ends_at_s=ends_at_s,
    )  # fmt: skip


def held(limit: int, *, key: str = "held") -> Charge:
    """A permit."""
    return Charge(key=key, resource="concurrency", scope="task=t", per=None, limit=limit, amount=1, mode="held")


def settled(reservation_id: str, tokens: int = 0, cost_nano: int = 0) -> Settlement:
    """What a reservation really used."""
    return Settlement(reservation_id, (), Usage(tokens, 0, cost_nano))
