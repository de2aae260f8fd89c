"""Idempotency keys over SQL: a claim is a row, so it outlives every process and the store."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import idempotency
from gateway.core.idempotency import Claimed, input_hash
from gateway.core.inference import Invocation

_KEY = ("team", "task", "key")
_held = idempotency.c


class SqlClaims:
    """Core's Claims. The ledger adds the outcome, in the transaction that records the inference."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, invocation: Invocation, lease_s: float) -> Claimed:
        """Claim the key of this invocation, unless it is held: who holds it now. Raises Unavailable."""
        insert = postgresql.insert if self._database.postgres else sqlite.insert
        new = insert(idempotency).values(
            team=invocation.caller.team,
            task=invocation.task,
            key=invocation.idempotency_key,
            body_hash=input_hash(invocation),
            inference_id=invocation.id,
            created_at=invocation.received_at,
            expires_at=invocation.received_at + timedelta(seconds=lease_s),
        )
        given = ("body_hash", "inference_id", "outcome", "created_at", "expires_at")
        claim = new.on_conflict_do_update(
            index_elements=_KEY,
            set_={name: new.excluded[name] for name in given},
            where=_held.expires_at <= new.excluded.created_at,
        )
        query = select(_held.inference_id, _held.body_hash, _held.outcome).where(*_of(invocation))
        async with self._database.begin() as connection:
            await connection.execute(claim)
            run_id, body_hash, outcome = (await connection.execute(query)).one()
        return Claimed(run_id, bytes(body_hash), outcome)

    async def release(self, invocation: Invocation) -> None:
        """Give up a claim that has no outcome. Raises Unavailable."""
        mine = (*_of(invocation), _held.inference_id == invocation.id, _held.outcome.is_(None))
        async with self._database.begin() as connection:
            await connection.execute(delete(idempotency).where(*mine))

    async def forget(self, now: datetime) -> int:
        """Remove the keys that have expired: how many. Raises Unavailable."""
        async with self._database.begin() as connection:
            return (await connection.execute(delete(idempotency).where(_held.expires_at <= now))).rowcount


def _of(invocation: Invocation) -> tuple[ColumnElement[bool], ...]:
    return (
        _held.team == invocation.caller.team,
        _held.task == invocation.task,
        _held.key == invocation.idempotency_key,
    )
