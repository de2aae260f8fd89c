"""Held messages while everything dies at random, a little; `make prove` does a hundred deaths and prints the table."""

from pathlib import Path

import pytest
from postgres import fresh_database, migrated_template
from prove.held import prove_held

from gateway.adapters.sql.migrate import upgrade
from gateway.local.valkey import Valkey

KILLS = 3
MIGRATIONS = Path(__file__).parent.parent / "migrations"


@pytest.mark.timeout(300)
async def test_the_books_reconcile_whatever_dies(tmp_path: Path, postgres_server: str) -> None:
    """In = delivered + held + blocked, and held = decided + expired + open, after each death and at the end; nothing is
    settled twice, and each outcome is told once, as it is.
    """
    template = await migrated_template(postgres_server, lambda url: upgrade(url, MIGRATIONS))
    valkey = Valkey()
    valkey.start()
    try:
        async with fresh_database(postgres_server, template) as database:
            checks = await prove_held(database, valkey, tmp_path / "home", KILLS, seed=2)
    finally:
        valkey.remove()
    assert [check for check in checks if check.difference] == []
