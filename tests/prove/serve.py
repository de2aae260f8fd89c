"""A gateway process as it ships, or with one seeded defect: `PROVE_DEFECT` names it. Nothing in the gateway knows."""

import os
from collections.abc import Callable
from typing import Any

from litestar import Litestar

from gateway.adapters.redis import RedisStore
from gateway.adapters.sql.ledger import SqlLedger
from gateway.core import engine


def _skip_settlements() -> None:
    """Reservations are made and never settled on the path of a good answer."""
    finish = RedisStore.finish

    async def broken(self: RedisStore, run: str, held: Any, settlements: Any, keep: Any) -> None:
        await finish(self, run, held, (), keep)

    RedisStore.finish = broken  # type: ignore[method-assign]


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
    from granian import Granian
    from granian.constants import Interfaces, Loops

    port = int(os.environ["GATEWAY_PORT"])
    Granian(
        "prove.serve:create", address="127.0.0.1", port=port, interface=Interfaces.ASGI, loop=Loops.uvloop,
        factory=True, websockets=False, log_access=False, backpressure=4096,
    ).serve()  # fmt: skip


if __name__ == "__main__":
    main()
