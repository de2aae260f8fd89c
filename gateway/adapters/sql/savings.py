"""Samples of suppressed prompts, and the traffic that they speak for."""

from collections.abc import Sequence
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import structs
from sqlalchemy import Select, and_, case, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.retention import removed
from gateway.adapters.sql.sums import total
from gateway.adapters.sql.tables import attempt, inference, model_call, prompt_sample
from gateway.core.errors import Conflict
from gateway.core.prompt_samples import PromptSample
from gateway.core.reports import day_start
from gateway.core.savings import Outputs, Sampled, Traffic


class SqlPromptSamples:
    """Core's PromptSamples."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, samples: Sequence[PromptSample]) -> None:
        """Returns when they are durable. Raises Unavailable."""
        async with self._database.begin() as connection:
            await connection.execute(insert(prompt_sample), [structs.asdict(sample) for sample in samples])


class SqlTraffic:
    """What became of a task's inferences, read from the rows."""

    def __init__(self, database: Database, zone: ZoneInfo) -> None:
        self._database, self._zone = database, zone

    async def of(self, task: str, start: date, end: date) -> Traffic:
        """The days [start, end) of the billing timezone.

        Raises Conflict where retention has removed rows of them, Unavailable.
        """
        span = (day_start(start, self._zone), day_start(end, self._zone))
        async with self._database.snapshot() as connection:
            gone = await removed(connection)
            if gone is not None and start < (first := gone.first_day(self._zone)):
                raise Conflict(f"Of days before {first} only sums are left, and no rows to tell what was saved.")
            inferences, cached, held = await _one(connection, _counted(task, *span))
            called, called_nano = await _one(connection, _called(task, *span))
            (compute_ms,) = await _one(connection, _computed(task, *span))
            outputs = Outputs(*await _one(connection, _outputs(task, *span)))
            samples = (await connection.execute(_samples(task, *span))).all()
        return Traffic(
            inferences=inferences,
            cached=cached,
            called=called,
            held=held,
            called_nano=called_nano,
            compute_ms=compute_ms,
            outputs=outputs,
            samples_cached=[Sampled(*row) for is_cached, *row in samples if is_cached],
            samples_cheap=[Sampled(*row) for is_cached, *row in samples if not is_cached],
        )


def _counted(task: str, start: Any, end: Any) -> Select[Any]:
    rows = inference.c
    cached = case((rows.cache.in_(("hit", "shared")), 1), else_=0)
    sums: list[Any] = [func.count(), func.coalesce(total(cached), 0), func.count(rows.review_id)]
    here = and_(rows.task == task, rows.received_at >= start, rows.received_at < end)
    return select(*sums).where(here, rows.kind == "invoke")


def _called(task: str, start: Any, end: Any) -> Select[Any]:
    """By the inference's own time: a call after midnight is its inference's, and not one of the next day's."""
    rows = model_call.c
    own = and_(inference.c.id == rows.inference_id, inference.c.received_at >= start, inference.c.received_at < end)
    cost = total(rows.cost_nano + func.coalesce(rows.provisional_nano, 0))
    sums: list[Any] = [func.count(rows.inference_id.distinct()), func.coalesce(cost, 0)]
    return select(*sums).select_from(model_call.join(inference, own)).where(rows.task == task, rows.kind == "invoke")


def _computed(task: str, start: Any, end: Any) -> Select[Any]:
    rows = attempt.c
    query: Select[Any] = select(func.coalesce(func.sum(rows.duration_ms), 0.0))
    here = and_(rows.task == task, rows.started_at >= start, rows.started_at < end)
    return query.where(here, rows.stage_kind.in_(("rules", "cnn")))


def _outputs(task: str, start: Any, end: Any) -> Select[Any]:
    rows = model_call.c
    squares = rows.output_tokens * rows.output_tokens
    sums: list[Any] = [func.count(), *(func.coalesce(total(each), 0) for each in (rows.output_tokens, squares))]
    here = and_(rows.task == task, rows.started_at >= start, rows.started_at < end, rows.kind == "invoke")
    return select(*sums).where(here, rows.settled, rows.outcome == "ok")


def _samples(task: str, start: Any, end: Any) -> Select[Any]:
    rows = prompt_sample.c
    query: Select[Any] = select(rows.cached, rows.received_at, rows.model, rows.input_tokens)
    return query.where(rows.task == task, rows.received_at >= start, rows.received_at < end)


async def _one(connection: AsyncConnection, query: Select[Any]) -> tuple[Any, ...]:
    return tuple((await connection.execute(query)).one())
