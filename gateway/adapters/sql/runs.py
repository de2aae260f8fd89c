"""Recorded inferences, read back, and what teams say of them."""

from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import RowMapping, Select, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import attempt, feedback, inference, model_call
from gateway.core.inference import Attempt, Decision, ModelCall, Usage
from gateway.core.records import Feedback, Run


class SqlRuns:
    """Core's Runs. Outputs are not stored: of a decision come back its label, policies and severity."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, run_id: str) -> Run | None:
        """The run of that id; None where there is none, or where `run_id` is no id at all. Raises Unavailable."""
        id_ = _parse(run_id)
        if id_ is None:
            return None
        async with self._database.begin() as connection:
            row = (await connection.execute(select(inference).where(inference.c.id == id_))).mappings().first()
            if row is None:
                return None
            attempts = await _rows(connection, _of_run(attempt, id_).order_by(attempt.c.position))
            calls = await _rows(connection, _of_run(model_call, id_).order_by(model_call.c.id))
        return _run(row, attempts, calls)


class SqlFeedback:
    """Core's FeedbackStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, said: Feedback) -> None:
        """Returns when it is durable. Raises Unavailable, InvalidInput for text that cannot be stored."""
        values = {
            "id": said.id,
            "inference_id": said.run_id,
            "team": said.team,
            "key_id": said.key_id,
            "label": said.label,
            "comment": said.comment,
            "created_at": said.created_at,
        }
        async with self._database.begin() as connection:
            await connection.execute(insert(feedback).values(values))


def _parse(run_id: str) -> str | None:
    try:
        return str(UUID(run_id))
    except ValueError:
        return None


def _of_run(table: Table, run_id: str) -> Select[tuple[object, ...]]:
    return select(table).where(table.c.inference_id == run_id)


async def _rows(connection: AsyncConnection, query: Select[tuple[object, ...]]) -> list[RowMapping]:
    return list((await connection.execute(query)).mappings())


def _run(row: RowMapping, attempts: Iterable[RowMapping], calls: Iterable[RowMapping]) -> Run:
    by_attempt: dict[str, list[ModelCall]] = defaultdict(list)
    for call in calls:
        by_attempt[call["attempt_id"]].append(_model_call(call))
    return Run(
        id=row["id"],
        task=row["task"],
        fingerprint=row["fingerprint"] or "",
        kind=row["kind"],
        caller_team=row["caller_team"],
        owner_team=row["owner_team"],
        payer_team=row["payer_team"],
        received_at=row["received_at"],
        decision=_decision(row),
        attempts=tuple(_attempt(found, tuple(by_attempt[found["id"]])) for found in attempts),
        cache=row["cache"],
        duration_ms=row["duration_ms"],
        parent_id=row["parent_id"],
        review_id=row["review_id"],
        trace_id=row["trace_id"],
    )


def _decision(row: RowMapping) -> Decision:
    output = None
    if row["severity"] is not None:
        output = {"label": row["label"], "policies": row["policies"] or [], "severity": row["severity"]}
    return Decision(
        status=row["status"],
        action=row["action"],
        output=output,
        label=row["label"],
        score=row["score"],
        stage=row["stage"],
        reason=row["reason"],
    )


def _attempt(row: RowMapping, calls: tuple[ModelCall, ...]) -> Attempt:
    return Attempt(
        id=row["id"],
        position=row["position"],
        stage=row["stage"],
        kind=row["stage_kind"],
        outcome=row["outcome"],
        started_at=row["started_at"],
        duration_ms=row["duration_ms"],
        label=row["label"],
        score=row["score"],
        label_mass=row["label_mass"],
        reason=row["reason"],
        matched=tuple(row["matched"] or ()),
        calls=calls,
    )


def _model_call(row: RowMapping) -> ModelCall:
    return ModelCall(
        id=row["id"],
        attempt_id=row["attempt_id"],
        model=row["model"],
        replica=row["replica"],
        outcome=row["outcome"],
        settled=row["settled"],
        usage=Usage(row["input_tokens"], row["output_tokens"], row["cost_nano"], row["provisional_nano"] or 0),
        started_at=row["started_at"],
        duration_ms=row["duration_ms"],
        http_status=row["http_status"],
        gpu_hour_nano=row["gpu_hour_nano"],
    )
