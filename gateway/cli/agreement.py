"""gateway reviews agreement: are the people right."""

from typing import TYPE_CHECKING

import click
from rich.table import Table

from gateway.cli.about_task import Asked, Said, about_task, shown
from gateway.cli.database import with_database

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database
    from gateway.core.agreement import Opinions, PeopleQuality


@click.command()
@about_task
def agreement(asked: Asked) -> Said:
    """Kappa and alpha of blind second opinions, accuracy on known items, overturned appeals."""
    from gateway.adapters.raters import NltkRaters
    from gateway.core.agreement import quality_of

    async def run(database: "Database") -> "Opinions":
        from gateway.adapters.sql.opinions import SqlOpinions

        return await SqlOpinions(database).opinions(asked.task, asked.start, asked.end)

    found = quality_of(with_database(asked.settings, run), NltkRaters())
    return Said(found, _tables(found))


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
