"""A gateway as it ships, in a world that chaos bends: a clock that jumps, a disk that is full, or a seeded defect."""

import os
import resource
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from litestar import Litestar
from msgspec.structs import replace


def _deliver_what_failed() -> None:
    """What nobody could decide is delivered."""
    from gateway.core import cascade

    undecided = cascade._undecided

    def broken(task: Any, attempts: Any) -> Any:
        return replace(undecided(task, attempts), action="deliver")

    cascade._undecided = broken


def _wait_for_ever() -> None:
    """No try of a model call ends by itself."""
    from gateway.adapters import replicas

    async def broken(ask: Any, reply: Any) -> Any:
        return await reply

    replicas._timely = broken


def _forget_rows() -> None:
    """Answers are given and never recorded."""
    from gateway.adapters.sql.ledger import SqlLedger

    async def broken(self: SqlLedger, inference: Any) -> None:
        return

    SqlLedger.record = broken  # type: ignore[method-assign]


def _keep_everything() -> None:
    """Every run stays in memory, with a page of its own."""
    from gateway.adapters.sql.ledger import SqlLedger

    record, kept = SqlLedger.record, []

    async def broken(self: SqlLedger, inference: Any) -> None:
        kept.append((inference, bytes(4096)))
        await record(self, inference)

    SqlLedger.record = broken  # type: ignore[method-assign]


LEAK = "memory leaks"
DEFECTS: dict[str, Callable[[], None]] = {
    "what failed is delivered": _deliver_what_failed,
    "no model call times out": _wait_for_ever,
    "answers without a row": _forget_rows,
    LEAK: _keep_everything,
}


def _bend_clock(file: Path) -> None:
    """Wall time is off by the seconds that the file says, at every reading."""
    from gateway.app import process

    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(file.read_text("utf-8") or 0))

    clock = process.Clock
    process.Clock = lambda **given: clock(now=now, **given)  # type: ignore[assignment, misc]


def create() -> Litestar:
    """The application, bent as the environment says."""
    from gateway.app import create as whole

    if size := os.environ.get("CHAOS_FILE_BYTES"):
        # The kernel's answer to a file that would grow further is then an error and no signal: a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    if clock := os.environ.get("CHAOS_CLOCK"):
        _bend_clock(Path(clock))
    if defect := os.environ.get("CHAOS_DEFECT"):
        DEFECTS[defect]()
    return whole()


def main() -> None:
    """Serve it as `gateway serve` does."""
    from gateway import settings
    from gateway.app import serve

    serve(settings.read(os.environ), "chaos.serve:create")


if __name__ == "__main__":
    main()
