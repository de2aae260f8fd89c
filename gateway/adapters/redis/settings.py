"""What every line to the store, and everything behind it, is set to."""

from msgspec import Struct


class RedisSettings(Struct, frozen=True, kw_only=True):
    """`url` is that of the client library: `redis://`, `rediss://` or `unix://`.

    `lease_s` must exceed the longest inference: what is held longer counts as left behind by a process that died.
    """

    url: str
    prefix: str = "tg:"
    timeout_s: float = 0.5
    """How long connecting may take, and each exchange."""
    failures: int = 3
    """After so many failed exchanges in a row the breaker answers for `rest_s`; the next request tries the line."""
    rest_s: float = 1.0
    lease_s: int = 300
    beat_s: float = 5.0
    rebuild_wait_s: float = 5.0
    """How long a reservation waits while the budgets are rebuilt."""
