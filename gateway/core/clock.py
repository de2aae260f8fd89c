"""Time and ids, as one value that tests can replace."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec


class Clock(msgspec.Struct, frozen=True):
    """`now` is UTC wall time, `monotonic_s` measures durations, `new_id` mints a UUIDv7 as text."""

    new_id: Callable[[], str]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic_s: Callable[[], float] = time.perf_counter

    def since_ms(self, start_s: float) -> float:
        """Milliseconds since a reading of `monotonic_s`."""
        return (self.monotonic_s() - start_s) * 1000
