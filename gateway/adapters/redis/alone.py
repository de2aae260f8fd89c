"""Request quotas from the process's own memory, while the store is away: each replica gives out its share."""

import time
from collections.abc import Sequence

from msgspec import Struct

from gateway.core.errors import QuotaExceeded
from gateway.core.quotas import Charge, Standing, refusal


class _Bucket(Struct):
    """What is used of a rate, leaking at limit / period since `at_s`."""

    level: float
    at_s: float


class OwnMemory:
    """The same three modes as the store, at limit ÷ replicas. Starts from nothing used, and forgets when told."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._windows: dict[str, int] = {}
        self._held: dict[str, set[str]] = {}

    def take(self, holder: str, charges: Sequence[Charge], replicas: int) -> list[Standing]:
        """Take all charges or none. Raises QuotaExceeded."""
        now_s = time.time()
        shares = [(charge, _share(charge.limit, replicas)) for charge in charges]
        for charge, limit in shares:
            standing, wait_s = self._look(charge, limit, now_s)
            if standing.used + charge.amount > limit:
                raise refusal(QuotaExceeded, standing, None if charge.amount > limit else wait_s)
        for charge, limit in shares:
            self._keep(holder, charge, limit, now_s)
        return [self._look(charge, limit, now_s)[0] for charge, limit in shares]

    def give_back(self, holder: str, held: Sequence[Charge]) -> None:
        """End what `take` held for this holder, if it did."""
        for charge in held:
            if (holders := self._held.get(charge.key)) is not None:
                holders.discard(holder)
                if not holders:
                    del self._held[charge.key]

    def forget(self) -> None:
        """The store is back and counts again. What is held ends with its holder."""
        self._buckets.clear()
        self._windows.clear()

    def _look(self, charge: Charge, limit: int, now_s: float) -> tuple[Standing, float]:
        if charge.mode == "held":
            return Standing(charge, limit, len(self._held.get(charge.key, ())), 0.0), 1.0
        if charge.mode == "window":
            left_s = max(0.0, charge.ends_at_s - now_s)
            return Standing(charge, limit, self._windows.get(charge.key, 0), left_s), left_s
        level = self._level(charge, limit, now_s)
        unit_s = charge.period_s / limit if limit else 0.0
        return Standing(charge, limit, -int(-level // 1), level * unit_s), (level + charge.amount - limit) * unit_s

    def _level(self, charge: Charge, limit: int, now_s: float) -> float:
        bucket = self._buckets.get(charge.key)
        if bucket is None:
            return 0.0
        return max(0.0, bucket.level - max(0.0, now_s - bucket.at_s) * limit / charge.period_s)

    def _keep(self, holder: str, charge: Charge, limit: int, now_s: float) -> None:
        if charge.mode == "held":
            self._held.setdefault(charge.key, set()).add(holder)
        elif charge.mode == "window":
            self._windows[charge.key] = self._windows.get(charge.key, 0) + charge.amount
        else:
            self._buckets[charge.key] = _Bucket(self._level(charge, limit, now_s) + charge.amount, now_s)


def _share(limit: int, replicas: int) -> int:
    """A replica's part of a limit; at least one, so that a small limit does not close the door."""
    return max(1, limit // replicas) if limit > 0 else 0
