"""Between the routes and the engine: admits requests, follows their events, and gives up on clients that leave."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from msgspec import Struct

from gateway.local.llm.engine import Engine
from gateway.local.llm.jobs import Dropped, Event, Failed, Generation, Job, Step, is_last
from gateway.local.llm.refusals import ClientGone, GenerationFailed, Overloaded


class Result(Struct, frozen=True, kw_only=True):
    """A whole answer with its times in milliseconds."""

    generation: Generation
    steps: list[Step]
    total_ms: float
    queue_ms: float
    inference_ms: float

    @property
    def last(self) -> Step:
        """The step that carries the finish reason and the whole text."""
        return self.steps[-1]


class Ticket:
    """One admitted request, on the event loop's side."""

    def __init__(self, job: Job, events: "asyncio.Queue[Event]") -> None:
        self.job = job
        self._events = events

    def cancel(self) -> None:
        """Stop working for this request; harmless when it has ended."""
        self.job.cancelled = True

    async def steps(self) -> AsyncIterator[Step]:
        """The tokens as they come. Raises GenerationFailed, ClientGone. Left early, the job is cancelled."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Failed):
                    raise GenerationFailed(event.reason)
                if isinstance(event, Dropped):
                    raise ClientGone
                yield event
                if is_last(event):
                    return
        finally:
            self.cancel()

    async def result(self) -> Result:
        """The whole answer."""
        steps = [step async for step in self.steps()]
        now_s, job = time.perf_counter(), self.job
        return Result(
            generation=job.generation,
            steps=steps,
            total_ms=(now_s - job.queued_at_s) * 1000,
            queue_ms=(job.started_at_s - job.queued_at_s) * 1000,
            inference_ms=(now_s - job.started_at_s) * 1000,
        )


class Desk:
    """Hands out tickets, at most `max_concurrent` at a time. Lives on one event loop."""

    def __init__(self, engine: Engine, max_concurrent: int) -> None:
        self._engine, self._free = engine, max_concurrent

    def admit(self, generation: Generation) -> Ticket:
        """Start a generation, or raise Overloaded at once. Its place is free again when the engine is done with it."""
        if self._free == 0:
            raise Overloaded
        self._free -= 1
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def arrive(event: Event) -> None:
            events.put_nowait(event)
            self._free += is_last(event)

        job = Job(
            generation=generation,
            emit=lambda event: _to_loop(loop, arrive, event),
            queued_at_s=time.perf_counter(),
        )
        self._engine.submit(job)
        return Ticket(job, events)

    @property
    def open(self) -> bool:
        """False where no generation can be served any more."""
        return self._engine.works


async def unless_gone(result: Awaitable[Result], left: Awaitable[None]) -> Result:
    """The result, or ClientGone as soon as the client has left; the other of the two is cancelled."""
    work, leaving = asyncio.ensure_future(result), asyncio.ensure_future(left)
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


def _to_loop(loop: asyncio.AbstractEventLoop, arrive: Callable[[Event], None], event: Event) -> None:
    # A loop that has closed has no clients left to tell.
    if not loop.is_closed():
        loop.call_soon_threadsafe(arrive, event)
