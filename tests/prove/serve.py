"""A gateway process as it ships, or with one seeded defect: `PROVE_DEFECT` names it. Nothing in the gateway knows."""

import os
from collections.abc import Callable
from typing import Any

from litestar import Litestar

from gateway.adapters.redis import RedisStore
from gateway.adapters.sql.ledger import SqlLedger
from gateway.core import engine
from gateway.core.meter import WireCall


def _skip_settlements() -> None:
    """Reservations are made and never settled on the path of a good answer."""
    finish = RedisStore.finish

    async def broken(self: RedisStore, run: str, held: Any, settlements: Any, keep: Any, *claimed: Any) -> None:
        await finish(self, run, held, (), keep, *claimed)

    RedisStore.finish = broken  # type: ignore[method-assign]


def _skip_settlements_of_lost_calls() -> None:
    """Reservations of calls that nobody knows the end of are never settled, nor swept."""
    finish = RedisStore.finish

    async def broken(self: RedisStore, run: str, held: Any, settlements: Any, keep: Any, *claimed: Any) -> None:
        await finish(self, run, held, [each for each in settlements if each.charges[0].amount != each.usage.cost_nano],
                     keep, *claimed)  # fmt: skip

    async def nothing(self: RedisStore, settlements: Any) -> None:
        return

    RedisStore.finish, RedisStore.settle = broken, nothing  # type: ignore[method-assign]


def _bill_lost_calls_at_nothing() -> None:
    """A call whose answer never came is written down as if the server had refused it."""

    def broken(self: WireCall, outcome: Any, http_status: Any = None) -> None:
        self.refuse(http_status)

    WireCall.lose = broken  # type: ignore[method-assign]


def _count_answers_twice() -> None:
    """Every answer is settled at twice what the server counted."""
    settle = WireCall.settle

    def broken(self: WireCall, input_tokens: int, output_tokens: int, http_status: int = 200) -> None:
        settle(self, 2 * input_tokens, 2 * output_tokens, http_status)

    WireCall.settle = broken  # type: ignore[method-assign]


def _drop_a_row() -> None:
    """Every fifth inference is never written."""
    record, count = SqlLedger.record, iter(range(1, 10**9))

    async def broken(self: SqlLedger, inference: Any) -> None:
        if next(count) % 5:
            await record(self, inference)

    SqlLedger.record = broken  # type: ignore[method-assign]


def _reserve_twice() -> None:
    """Every model call is admitted under two ids."""
    reserve = RedisStore.reserve

    async def broken(self: RedisStore, reservation_id: str, charges: Any) -> None:
        await reserve(self, reservation_id, charges)
        await reserve(self, f"{reservation_id} again", charges)

    RedisStore.reserve = broken  # type: ignore[method-assign]


def _admit_everything() -> None:
    """Budgets are never asked."""

    async def broken(self: RedisStore, reservation_id: str, charges: Any) -> None:
        return

    RedisStore.reserve = broken  # type: ignore[method-assign]


def _serve_stale_answers() -> None:
    """The cache forgets which version of the task an answer is of."""
    key = engine.cache_key

    def broken(invocation: Any, cache: Any) -> str:
        from msgspec.structs import replace

        return key(replace(invocation, fingerprint=""), cache)

    engine.cache_key = broken  # type: ignore[attr-defined]


DEFECTS: dict[str, Callable[[], None]] = {
    "settle skipped on the good path": _skip_settlements,
    "settle skipped where a call was lost": _skip_settlements_of_lost_calls,
    "lost calls billed at nothing": _bill_lost_calls_at_nothing,
    "answers counted twice": _count_answers_twice,
    "a row dropped": _drop_a_row,
    "an admission counted twice": _reserve_twice,
    "budgets never asked": _admit_everything,
    "a stale cache served": _serve_stale_answers,
}


def create() -> Litestar:
    """The application, broken as asked."""
    from gateway.app import create as whole

    if defect := os.environ.get("PROVE_DEFECT"):
        DEFECTS[defect]()
    return whole()


def main() -> None:
    """Serve it as `gateway serve` does."""
    from gateway import settings
    from gateway.app import serve

    serve(settings.read(os.environ), "prove.serve:create")


if __name__ == "__main__":
    main()
