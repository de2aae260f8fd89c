"""gateway reviews."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.access import database_url, finish
from gateway.cli.agreement import agreement
from gateway.core.reviews import State

_DAY = click.DateTime(["%Y-%m-%d"])


@click.group()
def reviews() -> None:
    """Held items: the queue, its history, and the labels that people gave."""


@reviews.command("list")
@click.option("--task")
@click.option("--state", type=click.Choice(get_args(State)))
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def list_reviews(task: str | None, state: State | None, limit: int) -> None:
    """Items, newest first, without their text."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.review_book import SqlReviewBook
    from gateway.core.review_ports import Filter

    table = Table("id", "kind", "task", "from", "state", "outcome", "severity", "score", "runs", "held", "due")

    async def run() -> None:
        async with opened(database_url()) as database:
            for item in await SqlReviewBook(database).listed(Filter(task=task, state=state, limit=limit)):
                score = f"{item.score:.3f}" if item.score is not None else ""
                times = (at.isoformat(timespec="seconds") for at in (item.created_at, item.due_at))
                said = (item.outcome or "", "" if item.severity is None else str(item.severity), score, str(item.runs))
                table.add_row(item.id, item.kind, item.task, item.caller_team, item.state, *said, *times)
        Console().print(table)

    finish(run())


@reviews.command("show")
@click.argument("review_id")
def show_review(review_id: str) -> None:
    """One item and every step of its life, as JSON. Its text stays where it is."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.review_book import SqlReviewBook

    async def run() -> None:
        async with opened(database_url()) as database:
            book = SqlReviewBook(database)
            if (item := await book.find(review_id)) is None:
                raise click.ClickException(f"there is no review `{review_id}`")
            hidden = msgspec.structs.replace(item, lease_token=None, join_key=None)
            shown = {"review": hidden, "events": await book.history(item.id)}
            click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())

    finish(run())


@reviews.command("export")
@click.option("--task", required=True)
@click.option("--from", "start", type=_DAY, default="2000-01-01", help="First day of decisions, UTC.")
@click.option("--to", "end", type=_DAY, help="The day after the last. Default: now.")
@click.option("--text", default="message", show_default=True, help="The field of the input that is labelled.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help=".jsonl or .parquet")
def export(task: str, start: datetime, end: datetime | None, text: str, out: Path) -> None:
    """What people decided, as labelled rows for `gateway lab`. Unmasked: keep the file as you keep the messages."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.review_labels import SqlReviewLabels

    if out.suffix not in (".jsonl", ".parquet"):
        raise click.BadParameter("ends with .jsonl or .parquet", param_hint="--out")

    until = end.replace(tzinfo=UTC) if end else datetime.now(UTC)
    rows: list[Mapping[str, Any]] = []

    async def run() -> None:
        async with opened(database_url()) as database:
            rows.extend(await SqlReviewLabels(database).rows(task, start.replace(tzinfo=UTC), until, text))

    finish(run())
    if out.suffix == ".jsonl":
        out.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    else:
        from gateway.adapters.exports import write_labels

        write_labels(rows, out)
    click.echo(f"{len(rows)} labelled rows in {out}")


reviews.add_command(agreement)


@reviews.command("simulate")
@click.option("--items", type=click.IntRange(min=1000), default=20_000, show_default=True)
@click.option("--reviewers", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--load", type=click.FloatRange(0.1, 0.99), default=0.95, show_default=True, help="Arrivals / capacity.")
@click.option("--prevalence", type=click.FloatRange(0.01, 0.9), default=0.25, show_default=True)
@click.option("--sla-minutes", type=click.FloatRange(min=1), default=60.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def simulate_queue(items: int, reviewers: int, load: float, prevalence: float, sla_minutes: float, seed: int) -> None:
    """How soon violations are found by the queue's order, against first in, first out, at equal capacity."""
    from gateway.lab.review_queue import World, simulate

    world = World(items=items, reviewers=reviewers, load=load, prevalence=prevalence, sla_minutes=sla_minutes)
    found = simulate(world, seed)
    table = Table("minutes from hold to decision", "by rank", "first in, first out", title=f"{items:,} held items")
    for name in found.by_rank.__struct_fields__:
        mine, theirs = getattr(found.by_rank, name), getattr(found.first_in_first_out, name)
        table.add_row(name.replace("_", ", "), f"{mine:.1f}", f"{theirs:.1f}")
    Console().print(table)
    click.echo(f"mean time to catch a violation: {-found.gain:+.0%}")


@click.group()
def privacy() -> None:
    """What a person may ask for."""


@privacy.command("erase")
@click.option("--subject", required=True, help="The `subject_id` that callers named.")
def erase_subject(subject: str) -> None:
    """Remove every text of a person. The ledger keeps its rows, which hold no text."""
    from gateway.adapters.sql.database import Database
    from gateway.adapters.sql.privacy import erase

    async def run() -> None:
        database = Database(process_settings.read(os.environ).database, 60.0)
        try:
            erased = await erase(database, subject, datetime.now(UTC))
        finally:
            await database.aclose()
        click.echo(f"{erased.texts} texts and {erased.answers} kept answers erased, {erased.withdrawn} items withdrawn")

    finish(run())
