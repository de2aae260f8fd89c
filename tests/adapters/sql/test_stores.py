"""Keys, teams, runs, feedback, fingerprints and usage, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select
from stories import ESTIMATE, TRUTH, inference, intent, invocation, new_id, now

from gateway.adapters.sql import tables
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.keys import SqlKeys
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.runs import SqlFeedback, SqlRuns
from gateway.adapters.sql.sweep import Sweeper
from gateway.adapters.sql.teams import SqlTeams
from gateway.adapters.sql.usage import SqlUsage
from gateway.core.audit import Actor
from gateway.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from gateway.core.keys import mint
from gateway.core.records import Feedback, Team, TeamLimit, UsageRow


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
    found = await store.find("moderation", "f" * 16)
    assert found is not None
    assert found.config == config
    assert await store.find("moderation", "0" * 16) is None
    assert await store.find("a-copy", "f" * 16) is None


async def test_the_history_of_a_task_is_its_own_and_newest_first(database: Database) -> None:
    """A copy of a task has the same fingerprint and a history of its own."""
    store, first = SqlFingerprints(database), datetime(2026, 3, 1, tzinfo=UTC)
    await store.remember("a" * 16, "moderation", {}, first)
    await store.remember("b" * 16, "moderation", {}, first + timedelta(days=1))
    await store.remember("a" * 16, "a-copy", {}, first + timedelta(days=2))
    assert [version.fingerprint for version in await store.of_task("moderation")] == ["b" * 16, "a" * 16]
    assert [version.first_seen for version in await store.of_task("a-copy")] == [first + timedelta(days=2)]


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
    task, usage, total = "message-moderation", SqlUsage(database, ZoneInfo("UTC")), TRUTH + ESTIMATE
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
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable):
                await SqlKeys(database).find("0" * 16)
            with pytest.raises(Unavailable):
                await database.ping()
        await database.aclose()


def test_other_databases_are_refused() -> None:
    """A URL of another kind of database is a mistake, not a surprise at the first query."""
    with pytest.raises(ValueError, match="postgresql:// or sqlite:///"):
        Database("mysql://localhost/gateway")


async def test_every_administrative_act_is_in_the_audit_log(database: Database) -> None:
    """Who did what to which team or key, newest first and page by page; never anything of a secret."""
    keys, teams, at, admin = SqlKeys(database), SqlTeams(database), now(), Actor("acme", "0" * 16)
    await teams.add(Team("acme", at))
    await teams.set_limits("acme", [TeamLimit("requests", 5, "minute")], admin)
    old, secret = mint("acme", frozenset({"invoke"}), at)
    new, _ = mint("acme", frozenset({"invoke"}), at)
    await keys.add(old, admin)
    await keys.rotate(old.id, new, at + timedelta(hours=1), admin)
    await keys.revoke(new.id, at)
    log = SqlAudit(database)
    acts = await log.latest(10)
    assert [(act.act, act.subject, str(act.by)) for act in acts] == [
        ("key_revoked", new.id, "terminal"),
        ("key_rotated", new.id, f"acme ({'0' * 16})"),
        ("key_created", old.id, f"acme ({'0' * 16})"),
        ("team_limited", "acme", f"acme ({'0' * 16})"),
        ("team_created", "acme", "terminal"),
    ]
    assert acts[1].detail["replaces"] == old.id
    assert secret.split("_")[2] not in repr(acts)
    assert await log.latest(2, acts[0].id) == acts[1:3]


async def test_an_act_that_failed_is_not_in_the_audit_log(database: Database) -> None:
    """The record and the act are one transaction: neither is there without the other."""
    keys, at = SqlKeys(database), now()
    stray, _ = mint("nobody", frozenset({"invoke"}), at)
    for refused in (keys.add(stray), keys.rotate("0" * 16, stray, at), keys.revoke("0" * 16, at)):
        with pytest.raises(NotFound):
            await refused
    assert await SqlAudit(database).latest(10) == []
    assert await keys.of_team(None) == []


async def test_a_rotated_key_works_through_the_overlap(database: Database) -> None:
    """Old and new key work side by side until the overlap ends."""
    keys, at = SqlKeys(database), now()
    await SqlTeams(database).add(Team("acme", at))
    old, _ = mint("acme", frozenset({"invoke", "read"}), at)
    new, _ = mint(old.team, old.scopes, at)
    await keys.add(old)
    await keys.rotate(old.id, new, at + timedelta(hours=1))
    kept = await keys.find(old.id)
    assert kept is not None
    assert kept.usable(at + timedelta(minutes=59))
    assert not kept.usable(at + timedelta(hours=1))
    assert (await keys.find(new.id)) == new
