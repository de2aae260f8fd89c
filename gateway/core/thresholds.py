"""Soft thresholds: a quota that is used up to four fifths is told of before it refuses anybody.

Once per calendar window and limit, whichever replica sees it: the script that takes the charge marks it. Smooth rates
(per second, per minute) refill all the time, and are not told of.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog
from msgspec import Struct

from gateway.core.prices import from_nano
from gateway.core.quotas import Standing
from gateway.core.task import Per, Resource

log = structlog.get_logger()

Told = Callable[[Standing], None]


class NearLimit(Struct, frozen=True, kw_only=True, tag_field="event", tag="quota_near_limit"):
    """What is told. Amounts of cost are decimals of the currency; `used` includes what calls under way may cost."""

    resource: Resource
    scope: str
    per: Per
    limit: int | str
    used: int | str
    resets_at: datetime


class Thresholds:
    """Tells the log, and whoever else wants to know. Neither waits nor raises."""

    def __init__(self, listeners: Sequence[Callable[[NearLimit], None]] = ()) -> None:
        self._listeners = listeners

    def __call__(self, standing: Standing) -> None:
        """A quota stands near its limit."""
        event = near_limit(standing)
        log.warning("quota_near_limit", resource=event.resource, scope=event.scope, per=event.per, limit=event.limit,
                    used=event.used, resets_at=event.resets_at.isoformat())  # fmt: skip
        for tell in self._listeners:
            tell(event)


def near_limit(standing: Standing) -> NearLimit:
    """In the words of whoever set the limit."""
    charge = standing.charge
    assert charge.per is not None, "only windows have a threshold"
    limit, used = (from_nano(n) if charge.resource == "cost" else n for n in (standing.limit, standing.used))
    return NearLimit(
        resource=charge.resource,
        scope=charge.scope,
        per=charge.per,
        limit=limit,
        used=used,
        resets_at=datetime.fromtimestamp(charge.ends_at_s, UTC),
    )


def told_to_nobody(standing: Standing) -> None:
    """Where nobody wants to know."""
