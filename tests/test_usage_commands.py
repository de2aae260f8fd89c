"""`gateway usage`, `gateway ledger` and `gateway teams limit` at a terminal, on a database with known rows."""

import asyncio
import csv
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from held_queue import ANN, BLOCK, DELIVER, Queue
from sqlalchemy import create_engine, text
from stack import MIGRATIONS
from stories import ESTIMATE, TRUTH, inference, intent, invocation

from gateway.__main__ import cli
from gateway.adapters.sql.books import Totals
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.ledger import open_ledger
from gateway.adapters.sql.migrate import upgrade
from gateway.adapters.sql.partitions import first_id
from gateway.adapters.sql.savings import SqlPromptSamples
from gateway.adapters.sql.sums import Sums
from gateway.cli.ledger import Counted, bounds
from gateway.core.prompt_samples import PromptSample

# The middle of a month that is long over, whatever today is.
THEN = datetime(2026, 3, 15, 12, tzinfo=UTC)


@pytest.fixture
async def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite file with three calls in March 2026, which the environment names."""
    file = tmp_path / "gateway.db"
    url = f"sqlite:///{file}"
    await upgrade(url, MIGRATIONS)
    ledger = open_ledger(url)
    for hours in range(3):
        asked = invocation(received_at=THEN + timedelta(hours=hours))
        made = intent(asked, created_at=asked.received_at)
        await ledger.intend(made)
        await ledger.record(inference(asked, made))
    await ledger.aclose()
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    return file


async def gateway(*command: str) -> Result:
    """Run a command as at a terminal; it has an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, cli, command, env={"COLUMNS": "200"})


SPAN = ("--from", "2026-03-01", "--to", "2026-04-01")


async def test_report_and_exports_agree_to_the_last_nano(file: Path, tmp_path: Path) -> None:
    """Table, JSON, CSV and Parquet carry the same exact total."""
    exports = {"--csv": tmp_path / "march.csv", "--parquet": tmp_path / "march.parquet"}
    written = [word for option, path in exports.items() for word in (option, str(path))]
    told = await gateway("usage", "report", "--by", "team,model,day", *SPAN, *written, "--json")
    assert told.exit_code == 0, told.output
    said: dict[str, Any] = msgspec.json.decode(told.output)
    assert said["total"]["cost"] == f"0.{3 * TRUTH.cost_nano:09d}"
    assert [line["model_calls"] for line in said["lines"] if line["model"]] == [3]
    rows = list(csv.DictReader(exports["--csv"].open()))
    assert sum(round(float(row["BilledCost"]) * 1e9) for row in rows) == 3 * TRUTH.cost_nano
    parquet = pq.read_table(exports["--parquet"])
    assert parquet.schema.metadata[b"focus_version"] == b"1.2"
    assert sum(int(cost.scaleb(9)) for cost in parquet["BilledCost"].to_pylist()) == 3 * TRUTH.cost_nano
    assert parquet.column_names == list(rows[0])
    table = await gateway("usage", "report", *SPAN)
    assert f"0.{3 * TRUTH.cost_nano:09d}" in table.output


async def test_a_month_closed_twice_is_the_same(file: Path, tmp_path: Path) -> None:
    """The second closing prints the first one's hash and time."""
    first = await gateway("usage", "close", "--month", "2026-03", "--csv", str(tmp_path / "a.csv"))
    again = await gateway("usage", "close", "--month", "2026-03", "--csv", str(tmp_path / "b.csv"))
    assert (first.exit_code, first.output) == (0, again.output)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes() != b""


async def test_verify_finds_a_row_that_is_gone(file: Path) -> None:
    """Status 0 while everything agrees, 1 after a call was taken out of the ledger."""
    assert (await gateway("ledger", "verify")).exit_code == 0
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM model_call WHERE id = (SELECT max(id) FROM model_call)"))
    engine.dispose()
    broken = await gateway("ledger", "verify")
    assert broken.exit_code == 1
    assert broken.output.count("DIFFERS") >= 3


async def test_a_price_is_corrected_once(file: Path, tmp_path: Path) -> None:
    """Shown first, written when asked to, nothing the second time; the closed month stays, everything agrees."""
    await gateway("usage", "close", "--month", "2026-03", "--csv", str(tmp_path / "before.csv"))
    price = ("--per-million-input", "0.20", "--per-million-output", "0.40")
    adjust = ("ledger", "adjust", "--model", "moderation-llm", *SPAN, *price, "--reason", "a typing error")
    due_nano = TRUTH.input_tokens * 200 + TRUTH.output_tokens * 400
    difference = f"0.{3 * (due_nano - TRUTH.cost_nano):09d}"
    shown = await gateway(*adjust)
    assert difference in shown.output, shown.output
    assert "1 adjustment(s) to write" in shown.output
    assert "1 adjustment(s) written" in (await gateway(*adjust, "--write")).output
    assert "0 adjustment(s) written" in (await gateway(*adjust, "--write")).output
    report = msgspec.json.decode((await gateway("usage", "report", "--by", "kind", "--json")).output)
    assert [(line["kind"], line["cost"]) for line in report["lines"]] == [("adjustment", difference)]
    await gateway("usage", "close", "--month", "2026-03", "--csv", str(tmp_path / "after.csv"))
    assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()
    assert (await gateway("ledger", "verify")).exit_code == 0
    assert "price_corrected" in (await gateway("audit", "list")).output


async def test_hours_of_gpus_are_shared_out_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that nobody used; a second run writes nothing; a month cannot be closed without its hours; a bill that
    was wrong is corrected by the difference."""
    first = datetime.now(UTC).date() - timedelta(days=2)
    price = f'from = {first}\nper_gpu_hour = "2.50"\ntokens_per_gpu_hour = 1000000\n'
    (tmp_path / "models.toml").write_text(
        f'[m]\nkind = "tgi"\nurls = ["http://127.0.0.1:1"]\nmodel_id = "m"\n[[m.price]]\n{price}', "utf-8"
    )
    monkeypatch.setenv("GATEWAY_HOME", str(tmp_path))
    hours = int((datetime.now(UTC) - datetime.combine(first, datetime.min.time(), UTC)).total_seconds() // 3600)
    shared = (await gateway("usage", "allocate")).output
    assert any(f"{count * 5 // 2}.{count * 5 % 2 * 5}" in shared for count in (hours - 1, hours)), shared
    assert "m  " not in (await gateway("usage", "allocate")).output
    assert (await gateway("ledger", "verify")).exit_code == 0
    assert "gpu-hours-idle" in (await gateway("usage", "report", "--by", "kind", "--from", str(first))).output
    too_early = await gateway("usage", "close", "--month", f"{first:%Y-%m}")
    assert too_early.exit_code == 1
    assert "shared out yet" in too_early.output
    span = ("--from", str(first), "--to", str(first + timedelta(days=1)), "--reason", "the invoice")
    adjust = ("ledger", "adjust", "--model", "m", *span, "--per-hour", "2.60")
    assert "1 adjustment(s) to write" in (await gateway(*adjust)).output
    written = (await gateway(*adjust, "--write")).output
    assert "2.400000000" in written, written
    assert "0 adjustment(s) written" in (await gateway(*adjust, "--write")).output
    assert (await gateway("ledger", "verify")).exit_code == 0
    assert (await gateway(*adjust, "--per-million-input", "1")).exit_code == 2


async def test_savings_stand_beside_what_was_spent(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All-LLM, what it did cost, the difference; rates as they are given; quality where the lab has measured it."""
    ledger = open_ledger(f"sqlite:///{file}")
    asked = [invocation(received_at=THEN) for _ in range(4)]
    for each in asked:
        await ledger.record(inference(each))
    await ledger.aclose()
    database = Database(f"sqlite:///{file}")
    await SqlPromptSamples(database).add(
        [
            PromptSample(
                inference_id=each.id, task=each.task, model="moderation-llm", cached=False, input_tokens=479,
                received_at=THEN,
            )
            for each in asked[:2]
        ]
    )  # fmt: skip
    await database.aclose()
    price = 'from = 2026-01-01\ninput_per_million = "0.1"\noutput_per_million = "0.1"\n'
    (tmp_path / "models.toml").write_text(
        f'[moderation-llm]\nkind = "tgi"\nurls = ["env:X"]\nmodel_id = "m"\n[[moderation-llm.price]]\n{price}', "utf-8"
    )
    quality = {name: {"auc": {"value": 0.9}, "operating": {"recall": None}} for name in ("tuned", "cascade")}
    (tmp_path / "tasks/message-moderation").mkdir(parents=True)
    (tmp_path / "tasks/message-moderation/metrics.json").write_bytes(msgspec.json.encode({"systems": quality}))
    monkeypatch.setenv("GATEWAY_HOME", str(tmp_path))
    rates = ("--compute-per-hour", "3600", "--review-each", "0.10")
    told = await gateway("usage", "savings", "--task", "message-moderation", *SPAN, *rates)
    assert told.exit_code == 0, told.output
    lines = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in told.output.splitlines()
        if "│" in line
    }
    # Three calls at 48,100 nano-units; four prompts of 479 tokens and an answer of one, at 100 each.
    assert lines["all-LLM"] == ["7", "0.000336", "", "0.900", "", "", ""]
    assert lines["decided by cheap stages"][:2] == ["4", "0.000192"]
    assert lines["invoke"][1] == "0.000144"
    # Seven prefilter runs of 0.75 ms, at 1 per second.
    assert lines["rules and prefilter"][1] == "0.005250"
    assert lines["saved"][1] == "-0.005058"
    assert "random sample (2 of 4)" in told.output
    said = msgspec.json.decode(
        (await gateway("usage", "savings", "--task", "message-moderation", *SPAN, "--json")).output
    )
    exact = {line["name"]: line["cost"] for line in said["lines"] if line["of"] != "all-LLM"}
    assert exact["invoke"] == f"0.{3 * TRUTH.cost_nano:09d}"
    assert exact["all-LLM"] == f"0.{3 * TRUTH.cost_nano + 4 * 48_000:09d}"
    assert exact["saved"] == f"0.{4 * 48_000:09d}"


async def test_what_people_found_stands_beside_what_it_cost(file: Path) -> None:
    """Precision of the interval, from the items that were held: one of two was right to hold."""
    url = f"sqlite:///{file}"
    ledger, database = open_ledger(url), Database(url)
    queue = Queue(database, ledger)
    for ruling in (BLOCK, DELIVER):
        run = await queue.hold(received_at=THEN)
        item = await queue.take()
        assert item is not None
        await queue.decide(item, ANN, ruling)
    declared = {"declaration": {"positive": "violation", "stage": [{"name": "llm", "kind": "chain"}]}}
    await SqlFingerprints(database).remember(run.invocation.fingerprint, "message-moderation", declared, THEN)
    await ledger.aclose()
    await database.aclose()
    told = await gateway("usage", "savings", "--task", "message-moderation", *SPAN, "--json")
    assert told.exit_code == 0, told.output
    (cascade,) = [line for line in msgspec.json.decode(told.output)["lines"] if line["name"] == "as it was"]
    assert cascade["live_precision"] == 0.5


async def test_a_price_that_is_none_is_refused(file: Path) -> None:
    """Without a traceback, and nothing is written."""
    price = ("--per-million-input", "-1", "--per-million-output", "0.40")
    told = await gateway("ledger", "adjust", "--model", "m", *SPAN, *price, "--reason", "r", "--write")
    assert told.exit_code == 1
    assert "no price" in told.output


async def test_a_limit_is_set_and_ended(file: Path) -> None:
    """One limit per resource and window; what cannot be counted is refused without a traceback."""
    await gateway("teams", "create", "acme")
    limit = ("teams", "limit", "acme", "--resource", "cost", "--per", "month")
    assert "200.00 cost per month" in (await gateway(*limit, "--limit", "200.00")).output
    changed = await gateway(*limit, "--limit", "300.00")
    assert changed.output.strip() == "acme: 300.00 cost per month"
    assert (await gateway(*limit, "--limit", "-1")).exit_code == 1
    assert (await gateway(*limit, "--remove")).output == ""


async def test_retention_counts_before_it_removes(file: Path) -> None:
    """A month that is open is refused; without --write nothing goes; after it verify is as green as before."""
    old = invocation(id=first_id(THEN), received_at=THEN)
    made = intent(old, id=first_id(THEN), created_at=THEN)
    ledger = open_ledger(f"sqlite:///{file}")
    await ledger.intend(made)
    await ledger.record(inference(old, made))
    await ledger.aclose()
    retention = ("db", "retention", "--keep-months", "1")
    refused = await gateway(*retention)
    assert refused.exit_code == 1
    assert "2026-03" in refused.output
    await gateway("usage", "close", "--month", "2026-03")
    before = (await gateway("usage", "report", *SPAN)).output
    assert "nothing is removed yet" in (await gateway(*retention)).output
    removed = await gateway(*retention, "--write")
    assert removed.exit_code == 0, removed.output
    assert f"0.{TRUTH.cost_nano:09d}" in removed.output
    assert (await gateway("usage", "report", *SPAN)).output == before
    assert (await gateway("ledger", "verify")).exit_code == 0
    assert "ledger_removed" in (await gateway("audit", "list")).output


@pytest.mark.parametrize(
    ("under_way", "at_server", "holds"),
    [(0, 959, False), (0, 960, True), (0, 1460, True), (0, 1461, False), (500, 1960, True), (500, 1961, False)],
)
def test_the_servers_count_lies_between_settled_and_all(under_way: int, at_server: int, holds: bool) -> None:
    """Both ends are included, and one token beyond either is a difference; a call under way counts at its estimate."""
    nothing = Sums(0, 0, 0, 0)
    totals = Totals(
        calls=Sums(2, TRUTH.input_tokens + ESTIMATE.input_tokens, 0, 0), unsettled=Sums(1, ESTIMATE.input_tokens, 0, 0),
        attempts=nothing, inferences=nothing, attempts_off=0, inferences_off=0, days_off=[], months_off=[],
        intents=Sums(1, under_way, 0, 0), removed=Sums(1, TRUTH.input_tokens, 0, 0),
    )  # fmt: skip
    assert all(finding.holds for finding in bounds(totals, Counted(at_server, 0))) is holds
