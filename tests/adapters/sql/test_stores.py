"""Keys, teams, runs, feedback, fingerprints and usage, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from stories import ESTIMATE, TRUTH, inference, intent, invocation, new_id, now

from gateway.adapters.sql import tables
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.keys import SqlKeys
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.runs import SqlFeedback, SqlRuns
from gateway.adapters.sql.sweep import Sweeper
from gateway.adapters.sql.teams import SqlTeams
from gateway.adapters.sql.usage import SqlUsage
from gateway.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from gateway.core.keys import mint
from gateway.core.records import Feedback, Team, UsageRow


async def test_a_key_comes_back_as_it_was_stored(database: Database) -> None:
    """A key is found by its id with all that was said of it; an unknown id finds nothing."""
    keys, at = SqlKeys(database), now()
    await SqlTeams(database).add(Team("acme", at))
    key, _ = mint("acme", frozenset({"invoke", "read"}), at, at + timedelta(days=1))
    await keys.add(key)
    assert await keys.find(key.id) == key
    assert await keys.find("0" * 16) is None


async def test_a_key_needs_a_team(database: Database) -> None:
    """A key of a team that does not exist is refused."""
    key, _ = mint("nobody", frozenset({"invoke"}), now())
    with pytest.raises(NotFound):
        await SqlKeys(database).add(key)


async def test_keys_are_listed_oldest_first(database: Database) -> None:
    """One team's keys, or all of them, in the order in which they were made."""
    keys, at = SqlKeys(database), now()
    await SqlTeams(database).add(Team("acme", at))
    made = [
        mint(team, frozenset({"invoke"}), at + timedelta(seconds=i))[0]
        for i, team in enumerate(("acme", "platform", "acme"))
    ]
    for key in reversed(made):
        await keys.add(key)
    assert await keys.of_team(None) == made
    assert await keys.of_team("acme") == [made[0], made[2]]


async def test_of_two_revocations_the_earlier_counts(database: Database) -> None:
    """Revoking again never gives a key more time; an unknown key cannot be revoked."""
    keys, at = SqlKeys(database), now()
    key, _ = mint("platform", frozenset({"admin"}), at)
    await keys.add(key)
    for when in (at + timedelta(hours=2), at + timedelta(hours=1), at + timedelta(hours=3)):
        await keys.revoke(key.id, when)
    stored = await keys.find(key.id)
    assert stored is not None
    assert stored.revoked_at == at + timedelta(hours=1)
    with pytest.raises(NotFound):
        await keys.revoke("0" * 16, at)


async def test_teams_have_names_of_their_own(database: Database) -> None:
    """The built-in team is there from the start; a name is taken once."""
    teams, at = SqlTeams(database), now()
    await teams.add(Team("acme", at))
    assert [team.name for team in await teams.all()] == ["acme", "platform"]
    assert await teams.find("acme") == Team("acme", at)
    assert await teams.find("nobody") is None
    with pytest.raises(Conflict):
        await teams.add(Team("platform", at))


@pytest.mark.parametrize("run_id", ["", "x", "\0", "é" * 36, "00000000-0000-7000-8000-000000000000"])
async def test_what_is_no_run_is_not_found(run_id: str, database: Database) -> None:
    """Neither an unknown id nor something that is no id at all is an error."""
    assert await SqlRuns(database).find(run_id) is None


async def test_feedback_is_kept(database: Database) -> None:
    """A label and a comment are stored word for word; text that no database can hold is the caller's error."""
    store = SqlFeedback(database)
    said = Feedback(
        id=new_id(), run_id=new_id(), team="acme", key_id="k", created_at=now(), label="clean", comment="naïve 🙂"
    )
    await store.add(said)
    async with database.begin() as connection:
        (row,) = (await connection.execute(select(tables.feedback))).mappings().all()
    assert (row["inference_id"], row["label"], row["comment"]) == (said.run_id, "clean", "naïve 🙂")
    with pytest.raises(InvalidInput):
        await store.add(
            Feedback(id=new_id(), run_id=new_id(), team="a", key_id="k", created_at=now(), comment="\ud800")
        )


async def test_a_fingerprint_is_remembered_once(database: Database) -> None:
    """The first configuration stays, however many replicas announce it."""
    store = SqlFingerprints(database)
    config = {"stage": [{"name": "rules"}], "threshold": 0.031}
    await asyncio.gather(*(store.remember("f" * 16, "moderation", config, now()) for _ in range(5)))
    await store.remember("f" * 16, "moderation", {}, now())
    assert await store.find("f" * 16) == config
    assert await store.find("0" * 16) is None


async def test_usage_is_summed_by_payer_task_and_model(ledger: SqlLedger, database: Database) -> None:
    """Inferences, calls, tokens and money of a half-open interval; what is only an estimate is shown apart."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    end = datetime(2026, 4, 1, tzinfo=UTC)
    inside, outside = invocation(received_at=start), invocation(received_at=end)
    for asked in (inside, outside):
        await ledger.record(inference(asked, intent(asked, created_at=asked.received_at)))
    await ledger.record(inference(invocation(received_at=start, payer_team="other")))
    lost = intent(invocation(), created_at=start)
    await ledger.intend(lost)
    await Sweeper(database, new_id, now).unsettle([lost])
    task, usage, total = "message-moderation", SqlUsage(database), TRUTH + ESTIMATE
    acme = [
        UsageRow(team="acme", task=task, model=None, inferences=2),
        UsageRow(
            team="acme",
            task=task,
            model="moderation-llm",
            model_calls=2,
            input_tokens=total.input_tokens,
            output_tokens=total.output_tokens,
            cost_nano=total.cost_nano,
            unsettled_nano=ESTIMATE.cost_nano,
        ),
    ]
    assert await usage.roll_up(start, end, "acme") == acme
    other = UsageRow(team="other", task=task, model=None, inferences=1)
    assert await usage.roll_up(start, end, None) == [*acme, other]
    assert await usage.roll_up(end + timedelta(microseconds=1), end + timedelta(days=1), None) == []


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """Every store says Unavailable, on either database, and does so soon."""
    for url in (f"sqlite:///{tmp_path}", f"postgresql://postgres@/postgres?host={tmp_path}"):
        database = Database(url)
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await SqlKeys(database).find("0" * 16)
            with pytest.raises(Unavailable):
                await database.ping()
        await database.aclose()


def test_other_databases_are_refused() -> None:
    """A URL of another kind of database is a mistake, not a surprise at the first query."""
    with pytest.raises(ValueError, match="postgresql:// or sqlite:///"):
        Database("mysql://localhost/gateway")
