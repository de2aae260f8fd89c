"""The ledger: one unit of work per inference, many of them in one commit.

Callers leave their item in a queue and wait. One task takes everything that waits, writes it in one transaction, and
wakes them: the busier it is, the more share one commit. Nobody else commits to the ledger's tables, but the sweeper.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from msgspec import Struct

from gateway.adapters.sql.writers import ConnectionLost, RowRefused, Writer, open_writer
from gateway.core.errors import Unavailable
from gateway.core.inference import Inference, Intent

log = structlog.get_logger()

# What the sweeper writes as the reason of an inference whose process is gone.
PROCESS_DIED = "process_died"

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5


class _Waiting(Struct, eq=False):
    """An item, who waits for it, and until when it is tried."""

    item: Intent | Inference
    written: asyncio.Future[None]
    deadline_s: float


class SqlLedger:
    """Core's Ledger and Intents over SQL. One per process.

    `sync`: `record` returns when the rows are durable; otherwise as soon as they are queued (intents always wait).
    `capacity` bounds the queue, `patience_s` how long an item waits for a database that is away. `committed` hears how
    many seconds each commit took.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        sync: bool = True,
        capacity: int = 8192,
        batch: int = 512,
        patience_s: float = 5.0,
        committed: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._writer, self._sync = writer, sync
        self._capacity, self._batch, self._patience_s = capacity, batch, patience_s
        self._committed = committed
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._running: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Items that wait to be written."""
        return len(self._queue)

    async def intend(self, intent: Intent) -> None:
        """Returns when the intent is durable. Raises Unavailable."""
        await self._enqueue(intent)

    async def record(self, inference: Inference) -> None:
        """One inference, one transaction; its intents go with it. Returns when durable. Raises Unavailable."""
        written = self._enqueue(inference)
        if self._sync:
            await written

    async def aclose(self) -> None:
        """Write what waits, then close. Items that come later are refused."""
        self._closing = True
        self._wake.set()
        if self._running is not None:
            await self._running
        await self._writer.aclose()

    def _enqueue(self, item: Intent | Inference) -> asyncio.Future[None]:
        if self._closing or len(self._queue) >= self._capacity:
            raise Unavailable("The ledger cannot take more.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        if self._running is None:
            self._running = loop.create_task(self._run())
        written: asyncio.Future[None] = loop.create_future()
        written.add_done_callback(_read)
        self._queue.append(_Waiting(item, written, loop.time() + self._patience_s))
        self._wake.set()
        return written

    async def _run(self) -> None:
        while True:
            while self._queue:
                await self._commit(self._take())
            if self._closing:
                return
            self._wake.clear()
            await self._wake.wait()

    def _take(self) -> list[_Waiting]:
        return [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        try:
            await self._write(batch)
        except RowRefused:
            for waiting in batch:
                await self._write_alone(waiting)
        except Exception as error:
            log.exception("ledger_broken")
            _fail(batch, error)

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        """Write them all, again and again until their patience ends. Raises RowRefused where one row is bad."""
        pause_s = _FIRST_PAUSE_S
        while batch:
            start_s = time.perf_counter()
            try:
                await self._writer.write(waiting.item for waiting in batch)
            except ConnectionLost as lost:
                log.warning("ledger_unavailable", error=str(lost), waiting=len(batch) + len(self._queue))
                batch = self._still_patient(batch, lost)
                await asyncio.sleep(pause_s if batch else 0)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._committed(time.perf_counter() - start_s)
                for waiting in batch:
                    if not waiting.written.done():
                        waiting.written.set_result(None)
                return

    async def _write_alone(self, waiting: _Waiting) -> None:
        try:
            await self._write((waiting,))
        except RowRefused as refused:
            await self._judge(waiting, refused)
        except Exception as error:
            log.exception("ledger_broken")
            _fail((waiting,), error)

    async def _judge(self, waiting: _Waiting, refused: RowRefused) -> None:
        """Ids are minted once, so a duplicate is the item itself, from a commit whose answer was lost on the way."""
        if refused.duplicate and await self._is_written(waiting.item):
            if not waiting.written.done():
                waiting.written.set_result(None)
            return
        log.error("ledger_row_refused", id=waiting.item.id, error=str(refused))
        _fail((waiting,), refused)

    async def _is_written(self, item: Intent | Inference) -> bool:
        """What the sweeper gave up is not: the ledger says that it failed, so that is what the caller must hear."""
        if isinstance(item, Intent):
            return True
        try:
            reason = await self._writer.reason_of(item.id)
        except ConnectionLost:
            return False
        return reason is not None and reason != (PROCESS_DIED,)

    def _still_patient(self, batch: Sequence[_Waiting], lost: ConnectionLost) -> list[_Waiting]:
        now_s = asyncio.get_running_loop().time()
        # Those behind in the queue came later; the ones whose time is up are told at once, not when their turn comes.
        late = [waiting for waiting in (*batch, *self._queue) if waiting.deadline_s <= now_s]
        if late:
            log.error("ledger_gave_up", items=len(late))
            _fail(late, lost)
        self._queue = deque(waiting for waiting in self._queue if waiting.deadline_s > now_s)
        return [waiting for waiting in batch if waiting.deadline_s > now_s]


def open_ledger(url: str, *, sync: bool = True, committed: Callable[[float], None] = lambda _: None) -> SqlLedger:
    """The ledger of a database URL. It connects, and starts its writer, when there is something to write."""
    return SqlLedger(open_writer(url), sync=sync, committed=committed)


def _fail(batch: Sequence[_Waiting], cause: Exception) -> None:
    for waiting in batch:
        if not waiting.written.done():
            unavailable = Unavailable("The ledger cannot be written.", retry_after_s=1)
            unavailable.__cause__ = cause
            waiting.written.set_exception(unavailable)


def _read(written: asyncio.Future[None]) -> None:
    """In relaxed mode nobody else looks at the outcome."""
    if not written.cancelled():
        written.exception()
