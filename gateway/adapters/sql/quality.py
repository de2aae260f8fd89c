"""The evidence of a period over SQL: what the ledger counts, and what people said."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.sums import total
from gateway.adapters.sql.tables import audit_sample, fingerprint, inference, review, review_item
from gateway.core.quality import Counted, Evidence, HeldItem, Sampled

_CLOCK = "clock"
_item, _sample, _run = review_item.c, audit_sample.c, inference.c


class SqlQuality:
    """Core's QualityBook."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def evidence(self, task: str, start: datetime, end: datetime) -> Evidence:
        """Of the runs received in [start, end). Raises Unavailable."""
        async with self._database.begin() as connection:
            configs = await _configs(connection, task)
            positive = {name: declared.get("positive") for name, declared in configs.items()}
            return Evidence(
                counted=await _counted(connection, task, start, end, positive),
                held=await _held(connection, task, start, end),
                sampled=await _sampled(connection, task, start, end, positive),
                audit_nano=await _audits(connection, task, start, end),
                llm_stages=_chains(configs),
            )


def people_said(row: RowMapping) -> bool | None:
    """Whether a person found a violation; None where nobody has decided yet, or a clock did."""
    decision = row["decision"]
    if decision is None or row["outcome"] is None or row["state"] == "withdrawn":
        return None
    return None if decision["by"]["key_id"] == _CLOCK else row["outcome"] == "block"


async def llm_stages(connection: AsyncConnection, task: str) -> dict[str, frozenset[str]]:
    """The names of each version's LLM stages."""
    return _chains(await _configs(connection, task))


async def _configs(connection: AsyncConnection, task: str) -> dict[str, Mapping[str, Any]]:
    """What each version declared."""
    query = select(fingerprint.c.fingerprint, fingerprint.c.config).where(fingerprint.c.task == task)
    return {name: config.get("declaration", {}) for name, config in await connection.execute(query)}


def _chains(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    return {
        name: frozenset(stage["name"] for stage in declared.get("stage", ()) if stage["kind"] == "chain")
        for name, declared in configs.items()
    }


async def _counted(
    connection: AsyncConnection, task: str, start: datetime, end: datetime, positive: Mapping[str, str | None]
) -> list[Counted]:
    ways = (_run.fingerprint, _run.stage, _run.status, _run.action, _run.label)
    query = (
        select(*ways, func.count().label("runs"), total(_run.cost_nano).label("cost_nano"))
        .where(_run.task == task, _run.kind == "invoke", _run.received_at >= start, _run.received_at < end)
        .group_by(*ways)
    )
    rows = [dict(row) for row in (await connection.execute(query)).mappings()]
    return [Counted(positive=_is(positive, row["fingerprint"], row.pop("label")), **row) for row in rows]


async def _held(connection: AsyncConnection, task: str, start: datetime, end: datetime) -> list[HeldItem]:
    asked = func.coalesce(review.c.item_id, review.c.id)
    runs = (
        select(
            review.c.fingerprint,
            review.c.stage,
            asked.label("asked"),
            func.count().label("runs"),
            func.max(review.c.score).label("score"),
        )
        .where(review.c.task == task, review.c.created_at >= start, review.c.created_at < end)
        .group_by(review.c.fingerprint, review.c.stage, asked)
        .subquery()
    )
    said = (_item.state, _item.outcome, _item.decision)
    query = select(runs, *said).join(review_item, _item.id == runs.c.asked).where(_item.kind == "held")
    rows = (await connection.execute(query)).mappings()
    names = ("fingerprint", "stage", "runs", "score")
    return [HeldItem(violation=people_said(row), **{name: row[name] for name in names}) for row in rows]


async def _sampled(
    connection: AsyncConnection, task: str, start: datetime, end: datetime, positive: Mapping[str, str | None]
) -> list[Sampled]:
    names = ("fingerprint", "stage", "score", "asks", "probability", "status", "verdict", "people_probability")
    query = (
        select(*(_sample[name] for name in names), _sample.label, _item.state, _item.outcome, _item.decision)
        .select_from(audit_sample.outerjoin(review_item, _item.id == _sample.review_id))
        .where(_sample.task == task, _sample.created_at >= start, _sample.created_at < end)
    )
    return [
        Sampled(
            positive=_is(positive, row["fingerprint"], row["label"]),
            violation=people_said(row),
            **{name: row[name] for name in names},
        )
        for row in (await connection.execute(query)).mappings()
    ]


async def _audits(connection: AsyncConnection, task: str, start: datetime, end: datetime) -> dict[str, int]:
    """What the audits of a version's runs cost, whichever version made them."""
    query = (
        select(_sample.fingerprint, total(_run.cost_nano).label("cost"))
        .join(inference, _run.parent_id == _sample.id)
        .where(_run.kind == "audit", _sample.task == task, _sample.created_at >= start, _sample.created_at < end)
        .group_by(_sample.fingerprint)
    )
    return {row.fingerprint: row.cost for row in await connection.execute(query)}


def _is(positive: Mapping[str, str | None], version: str, label: str | None) -> bool:
    return label is not None and label == positive.get(version)
