"""Teams over SQL."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from sqlalchemy import RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import team as team_table
from gateway.core.audit import TERMINAL, Actor
from gateway.core.errors import Conflict, NotFound
from gateway.core.records import Team, TeamLimit

_teams = select(team_table)


class SqlTeams:
    """Core's Teams. The built-in team `platform` is always there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, team: Team, by: Actor = TERMINAL) -> None:
        """Raises Conflict where the name is taken, Unavailable."""
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(team_table).values(name=team.name, created_at=team.created_at))
                await note(connection, by, "team_created", team.name, team.created_at)
        except IntegrityError as error:
            raise Conflict(f"There is a team `{team.name}` already.") from error

    async def find(self, name: str) -> Team | None:
        """The team of that name. Raises Unavailable."""
        async with self._database.begin() as connection:
            row = (await connection.execute(_teams.where(team_table.c.name == name))).mappings().first()
        return _team(row) if row is not None else None

    async def all(self) -> Sequence[Team]:
        """Every team by name. Raises Unavailable."""
        async with self._database.begin() as connection:
            rows = (await connection.execute(_teams.order_by(team_table.c.name))).mappings()
            return [_team(row) for row in rows]

    async def limits(self) -> Mapping[str, Sequence[TeamLimit]]:
        """The limits of every team that has any. Raises Unavailable."""
        return {team.name: team.limits for team in await self.all() if team.limits}

    async def set_limits(self, name: str, limits: Sequence[TeamLimit], by: Actor = TERMINAL) -> Team:
        """Replace the team's limits; what was used stays used. Raises NotFound, Unavailable."""
        change = (
            update(team_table)
            .where(team_table.c.name == name)
            .values(limits=msgspec.to_builtins(limits))
            .returning(*team_table.c)
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(change)).mappings().first()
            if row is None:
                raise NotFound(f"There is no team `{name}`.")
            await note(connection, by, "team_limited", name, datetime.now(UTC), limits=msgspec.to_builtins(limits))
        return _team(row)


def _team(row: RowMapping) -> Team:
    return Team(row["name"], row["created_at"], msgspec.convert(row["limits"] or (), tuple[TeamLimit, ...]))
