"""Teams over SQL."""

from collections.abc import Sequence

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import team as team_table
from gateway.core.errors import Conflict
from gateway.core.records import Team

_teams = select(team_table.c.name, team_table.c.created_at)


class SqlTeams:
    """Core's Teams. The built-in team `platform` is always there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, team: Team) -> None:
        """Raises Conflict where the name is taken, Unavailable."""
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(team_table).values(name=team.name, created_at=team.created_at))
        except IntegrityError as error:
            raise Conflict(f"There is a team `{team.name}` already.") from error

    async def find(self, name: str) -> Team | None:
        """The team of that name. Raises Unavailable."""
        async with self._database.begin() as connection:
            row = (await connection.execute(_teams.where(team_table.c.name == name))).mappings().first()
        return Team(**row) if row is not None else None

    async def all(self) -> Sequence[Team]:
        """Every team by name. Raises Unavailable."""
        async with self._database.begin() as connection:
            rows = (await connection.execute(_teams.order_by(team_table.c.name))).mappings()
            return [Team(**row) for row in rows]
