"""`gateway check --online`: what it asks the models is money too, and stands in the ledger."""

import asyncio
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fault_server import FaultServer, serving
from sqlalchemy import select

from gateway.__main__ import cli
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import intent, model_call
from gateway.app import load_registry
from gateway.core.problems import InvalidConfig
from gateway.settings import Settings

EXAMPLES = '{"input": {"message": "one"}, "label": "rude"}\n{"input": {"message": "Thank you"}, "label": "fine"}\n'


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment names a home whose task has two examples; a rule answers the second."""
    (home / "tasks/manners/examples.jsonl").write_text(EXAMPLES, "utf-8")
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_HOME", str(home))
    return home


async def check(model: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The command, as at a terminal, against this model server."""
    async with serving(model) as url:
        monkeypatch.setenv("LLM_URL", url)
        return await asyncio.to_thread(CliRunner().invoke, cli, ("check", "--online"), env={"COLUMNS": "200"})


async def test_what_a_check_asks_is_in_the_ledger(
    at_home: Path, database: str, model: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call, a canary that the platform pays; nothing is left open, and every sum agrees."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", database)
    told = await check(model, monkeypatch)
    assert told.exit_code == 0, told.output
    assert len(model.asked) == 1
    books = Database(database)
    async with books.begin() as connection:
        columns = (model_call.c.kind, model_call.c.payer_team, model_call.c.settled, model_call.c.cost_nano)
        ((kind, payer, settled, cost_nano),) = (await connection.execute(select(*columns))).all()
        assert (await connection.execute(select(intent.c.id))).all() == []
    await books.aclose()
    assert (kind, payer, settled) == ("canary", "platform", True)
    assert f"1 model call(s), cost 0.{cost_nano:09d}, in the ledger" in told.output
    assert (await asyncio.to_thread(CliRunner().invoke, cli, ("ledger", "verify"))).exit_code == 0


async def test_without_a_ledger_a_check_says_so(
    at_home: Path, model: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever checks a task before there is a database spends all the same, and is told how much."""
    told = await check(model, monkeypatch)
    assert told.exit_code == 0, told.output
    assert "1 model call(s), cost 0.00" in told.output
    assert "in no ledger" in told.output


def test_a_task_that_outlives_its_intents_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is under way for longer than an orphan may be would be billed as lost, and its answer refused."""
    monkeypatch.setenv("LLM_URL", "http://127.0.0.1:1")
    task = home / "tasks/manners/task.toml"
    text = task.read_text("utf-8").replace('model = "tiny"', 'model = "tiny"\ndeadline_s = 110')
    task.write_text(text, "utf-8")
    with pytest.raises(InvalidConfig, match="takes up to 121 s, and after 120 s"):
        load_registry(Settings(home=str(home)))
    load_registry(Settings(home=str(home), orphan_after_s=121))
