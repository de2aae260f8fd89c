"""`gateway reviews`, `gateway webhooks` and `gateway privacy` at a terminal, on a database with a held item."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from stack import MIGRATIONS
from stories import held, invocation, new_id, now

from gateway.__main__ import cli
from gateway.adapters.sql.access import opened
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.ledger import open_ledger
from gateway.adapters.sql.migrate import upgrade
from gateway.adapters.sql.reviews import SqlReviews
from gateway.adapters.sql.teams import SqlTeams
from gateway.core import review_rules
from gateway.core.records import Team
from gateway.core.reviews import Reviewer, Ruling
from gateway.lab.rows import read_jsonl

ANN = Reviewer("trust-and-safety", "a" * 16)


@pytest.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SQLite database with the team `acme`, which the environment names."""
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    await upgrade(url, MIGRATIONS)
    async with opened(url) as database:
        await SqlTeams(database).add(Team("acme", now()))
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    return url


async def gateway(*command: str) -> Result:
    """Run a command as at a terminal; it has an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, cli, command, env={"COLUMNS": "200"})


async def hold(url: str) -> str:
    """The id of a new item."""
    ledger, id_ = open_ledger(url), new_id()
    await ledger.record(held(invocation(), id_))
    await ledger.aclose()
    return id_


async def block(url: str) -> None:
    """Decide the next item."""
    async with opened(url) as database:
        queue, ruling = SqlReviews(database), Ruling(outcome="block", policies=("off_platform",))
        item = await queue.take(ANN, now(), "t")
        assert item is not None
        await queue.change(item.id, lambda i: review_rules.decide(i, ANN, now(), "t", ruling, timedelta()))


async def test_an_item_from_the_queue_to_a_file_of_labels(url: str, tmp_path: Path) -> None:
    """Listed, shown with its history, exported as what the lab reads; its text is in the export alone."""
    id_ = await hold(url)
    assert id_ in (await gateway("reviews", "list", "--state", "open")).output
    await block(url)
    shown = await gateway("reviews", "show", id_)
    said = msgspec.json.decode(shown.output)
    assert [event["event"] for event in said["events"]] == ["leased", "decided"]
    assert "Tuesday" not in shown.output
    out = tmp_path / "labels.jsonl"
    done = await gateway("reviews", "export", "--task", "message-moderation", "--out", str(out))
    assert done.output.startswith("1 labelled rows")
    (row,) = read_jsonl(out, dict[str, object])
    assert (row["label"], row["policy"], row["id"]) == ("violation", "off_platform", id_)
    assert (await gateway("reviews", "show", new_id())).exit_code == 1
    assert (await gateway("reviews", "export", "--task", "t", "--out", "x.txt")).exit_code == 2


async def test_a_webhook_at_a_terminal(url: str) -> None:
    """Set with a secret that is printed once; an outcome becomes a message; what is dead can be sent again."""
    made = await gateway("webhooks", "set", "acme", "https://example.org/hook")
    assert made.output.startswith("whsec_")
    assert (await gateway("webhooks", "set", "nobody", "https://example.org/")).exit_code == 1
    assert (await gateway("webhooks", "set", "acme", "ftp://example.org/")).exit_code == 1
    assert (await gateway("webhooks", "set", "acme", "https://example.org/", "--secret", "word")).exit_code == 2
    await hold(url)
    await block(url)
    assert "pending" in (await gateway("webhooks", "list")).output
    assert "0 messages" in (await gateway("webhooks", "replay", "--dead")).output
    assert (await gateway("webhooks", "replay")).exit_code == 2
    assert (await gateway("webhooks", "rotate", "acme", "--overlap-hours", "1")).output.startswith("whsec_")
    assert (await gateway("webhooks", "rotate", "acme", "--secret", "env:HOOK")).output == ""
    assert (await gateway("webhooks", "rotate", "acme", "--secret", "word")).exit_code == 2
    assert (await gateway("webhooks", "rotate", "nobody")).exit_code == 1
    assert (await gateway("webhooks", "remove", "acme")).exit_code == 0
    assert (await gateway("webhooks", "remove", "acme")).exit_code == 1
    async with opened(url) as database:
        acts = [(act.act, act.subject) for act in await SqlAudit(database).latest(9)]
    told = ["webhook_removed", "webhook_rotated", "webhook_rotated", "webhook_set"]
    assert acts[:4] == [(act, "acme") for act in told], "what was refused is no act"


async def test_a_person_is_erased_at_a_terminal(url: str) -> None:
    """What went is counted; again there is nothing."""
    await hold(url)
    erased = await gateway("privacy", "erase", "--subject", "subject-1")
    assert erased.output == "1 texts and 0 kept answers erased, 1 items withdrawn\n"
    assert (await gateway("privacy", "erase", "--subject", "subject-1")).output.startswith("0 texts")


@pytest.mark.parametrize(
    ("command", "table", "value"),
    [(("quality", "report"), "recall", "rows"), (("reviews", "agreement"), "kappa", "pairs")],
)
async def test_what_is_known_of_a_task_is_a_table_or_json(
    url: str, command: tuple[str, ...], table: str, value: str
) -> None:
    """Both reports take a task and a period of days; a period that ends before it begins is refused."""
    await hold(url)
    await block(url)
    asked = (*command, "--task", "message-moderation", "--from", "2026-01-01")
    assert table in (await gateway(*asked)).output
    assert value in msgspec.json.decode((await gateway(*asked, "--json")).output)
    assert (await gateway(*asked, "--to", "2026-01-01")).exit_code == 2


async def test_the_queue_is_simulated_at_a_terminal() -> None:
    """The saving is printed."""
    said = await gateway("reviews", "simulate", "--items", "3000")
    assert "mean time to catch a violation: -" in said.output
