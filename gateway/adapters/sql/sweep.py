"""The sweeper: what a process that died left behind becomes unsettled rows of the ledger.

An intent without settlement says that a model may have been called, for at most the estimate. The sweeper takes the
intent away and writes that down in the same transaction, so whatever dies next, it is counted once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import RowMapping, Table, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import PROCESS_DIED
from gateway.adapters.sql.tables import attempt, inference, intent, model_call
from gateway.core.inference import NOTHING_USED, Intent, Usage

# The intent does not know which stage made the call.
UNKNOWN_STAGE = "unknown"
_AT_ONCE = 500
_USAGE = ("input_tokens", "output_tokens", "cost_nano", "provisional_nano")


class Sweeper:
    """Finds orphaned intents and settles them at their estimate. Any number of processes may sweep at once."""

    def __init__(self, database: Database, new_id: Callable[[], str], now: Callable[[], datetime]) -> None:
        self._database, self._new_id, self._now = database, new_id, now

    async def orphans(self, older_than: datetime) -> Sequence[Intent]:
        """The oldest intents written before `older_than`, at most 500. Raises Unavailable."""
        query = select(intent).where(intent.c.created_at < older_than).order_by(intent.c.id).limit(_AT_ONCE)
        async with self._database.begin() as connection:
            return [intent_of(row) for row in (await connection.execute(query)).mappings()]

    async def unsettle(self, intents: Iterable[Intent]) -> Sequence[Intent]:
        """Turn these into unsettled rows; returns those that nobody else settled or swept before. Raises Unavailable.

        Where the inference is not recorded it becomes a failed one with reason `process_died`. Where it is (a call that
        outlived its inference), a failed inference of its own names it as parent: recorded rows never change.
        """
        ids = [orphan.id for orphan in intents]
        async with self._database.begin() as connection:
            claimed = await self._claim(connection, ids)
            # An intent may come after its call, from a commit that had seemed lost: then it only goes.
            known = await _recorded(connection, model_call, {orphan.id for orphan in claimed})
            claimed = [orphan for orphan in claimed if orphan.id not in known]
            there = await _recorded(connection, inference, {orphan.inference_id for orphan in claimed})
            for inference_id, calls in groupby(claimed, lambda orphan: orphan.inference_id):
                await self._write(connection, list(calls), inference_id in there)
        return claimed

    async def outcomes(self, ids: Sequence[str]) -> Mapping[str, Usage | None]:
        """Of the model calls that the ledger knows: what was recorded, or None while there is only the intent.

        Intents are read first: what is recorded between the two reads is then found twice, never not at all.
        """
        recorded = select(model_call.c.id, *(model_call.c[name] for name in _USAGE)).where(model_call.c.id.in_(ids))
        async with self._database.begin() as connection:
            open_ids = (await connection.execute(select(intent.c.id).where(intent.c.id.in_(ids)))).scalars()
            known: dict[str, Usage | None] = dict.fromkeys(open_ids)
            for id_, *usage in await connection.execute(recorded):
                known[id_] = _usage_of(*usage)
        return known

    async def _claim(self, connection: AsyncConnection, ids: Sequence[str]) -> list[Intent]:
        """Take the intents away. What somebody else holds a lock on is being settled right now: not ours."""
        free = select(intent.c.id).where(intent.c.id.in_(ids)).order_by(intent.c.id).with_for_update(skip_locked=True)
        taken = await connection.execute(delete(intent).where(intent.c.id.in_(free)).returning(*intent.c))
        return sorted((intent_of(row) for row in taken.mappings()), key=lambda orphan: (orphan.inference_id, orphan.id))

    async def _write(self, connection: AsyncConnection, calls: Sequence[Intent], recorded: bool) -> None:
        first = calls[0]
        owner_id = self._new_id() if recorded else first.inference_id
        attempts = {call.attempt_id: self._new_id() if recorded else call.attempt_id for call in calls}
        await _insert(connection, inference, [self._inference_row(owner_id, calls, recorded)])
        await _insert(
            connection,
            attempt,
            [
                _attempt_row(attempt_id, owner_id, position, [call for call in calls if call.attempt_id == original])
                for position, (original, attempt_id) in enumerate(attempts.items())
            ],
        )
        await _insert(connection, model_call, [_call_row(call, owner_id, attempts[call.attempt_id]) for call in calls])

    def _inference_row(self, owner_id: str, calls: Sequence[Intent], recorded: bool) -> dict[str, Any]:
        first = calls[0]
        return {
            **_who(first),
            "id": owner_id,
            "parent_id": first.inference_id if recorded else None,
            "cache": "off",
            "status": "failed",
            "reason": PROCESS_DIED,
            **_usage(calls),
            "duration_ms": 0.0,
            "upstream_ms": 0.0,
            "received_at": self._now() if recorded else first.created_at,
        }


async def _recorded(connection: AsyncConnection, table: Table, ids: set[str]) -> set[str]:
    return set((await connection.execute(select(table.c.id).where(table.c.id.in_(ids)))).scalars())


async def _insert(connection: AsyncConnection, table: Table, rows: list[dict[str, Any]]) -> None:
    await connection.execute(insert(table), rows)


def _attempt_row(attempt_id: str, owner_id: str, position: int, calls: Sequence[Intent]) -> dict[str, Any]:
    return {
        "id": attempt_id,
        "inference_id": owner_id,
        "task": calls[0].task,
        "position": position,
        "stage": UNKNOWN_STAGE,
        "stage_kind": "chain",
        "outcome": "failed",
        "reason": PROCESS_DIED,
        **_usage(calls),
        "started_at": calls[0].created_at,
        "duration_ms": 0.0,
    }


def _call_row(call: Intent, owner_id: str, attempt_id: str) -> dict[str, Any]:
    return {
        **_who(call),
        "id": call.id,
        "attempt_id": attempt_id,
        "inference_id": owner_id,
        "stage": UNKNOWN_STAGE,
        "model": call.model,
        "replica": call.replica,
        "outcome": "lost",
        "settled": False,
        **_usage([call]),
        "started_at": call.created_at,
        "duration_ms": 0.0,
        "gpu_hour_nano": call.gpu_hour_nano,
        "provisional_nano": call.estimate.provisional_nano,
    }


def _who(call: Intent) -> dict[str, Any]:
    return {
        "kind": call.kind,
        "task": call.task,
        "caller_team": call.caller_team,
        "owner_team": call.owner_team,
        "payer_team": call.payer_team,
        "key_id": call.key_id,
    }


def _usage(calls: Sequence[Intent]) -> dict[str, int]:
    total = sum((call.estimate for call in calls), NOTHING_USED)
    return {
        "input_tokens": total.input_tokens,
        "output_tokens": total.output_tokens,
        "cost_nano": total.cost_nano,
    }


def intent_of(row: RowMapping) -> Intent:
    """A row of the table `intent`."""
    values = dict(row)
    estimate = _usage_of(*(values.pop(name) for name in _USAGE))
    return Intent(estimate=estimate, **values)


def _usage_of(input_tokens: int, output_tokens: int, cost_nano: int, provisional_nano: int | None) -> Usage:
    """Rows of earlier versions do not know the last column."""
    return Usage(input_tokens, output_tokens, cost_nano, provisional_nano or 0)
