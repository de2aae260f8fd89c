"""gateway reviews agreement: are the people right."""

import os
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.database import with_database
from gateway.cli.quality import period, shown

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database
    from gateway.core.agreement import Opinions, PeopleQuality

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--task", required=True)
@click.option("--from", "first", type=_DAY, required=True, help="First day of judgements, in the billing timezone.")
@click.option("--to", "after", type=_DAY, help="The day after the last. Default: tomorrow.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
def agreement(task: str, first: datetime, after: datetime | None, as_json: bool) -> None:
    """Kappa and alpha of blind second opinions, accuracy on known items, overturned appeals."""
    import msgspec

    from gateway.core.agreement import quality_of

    settings = process_settings.read(os.environ)
    start, end = period(settings, first, after)

    async def run(database: "Database") -> "Opinions":
        from gateway.adapters.sql.opinions import SqlOpinions

        return await SqlOpinions(database).opinions(task, start, end)

    found = quality_of(with_database(settings, run))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for table in _tables(found):
            Console().print(table)


def _tables(found: "PeopleQuality") -> list[Table]:
    pairs = Table("about", "reviewers", "items", "agreed", "kappa", title="blind second opinions, by pair")
    for pair in found.pairs:
        pairs.add_row(pair.about, " ".join(pair.keys), str(pair.items), shown(pair.agreed), _number(pair.kappa))
    alphas = Table("about", "items", "alpha", title="everybody (Krippendorff)")
    for each in found.alphas:
        alphas.add_row(each.about, str(each.items), _number(each.alpha))
    people = Table("reviewer", "known items", "right", "disputes", "upheld by a third", title="beside what is known")
    for one in found.reviewers:
        people.add_row(one.key_id, str(one.gold), shown(one.right), str(one.disputes), shown(one.upheld))
    fell = Table("by", "name", "appeals", "overturned", title="appeals")
    for rate in found.overturned:
        fell.add_row(rate.by, rate.name, str(rate.appeals), shown(rate.rate))
    return [pairs, alphas, people, fell]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
