"""Traces of what no caller asked for, and how an audit is found from the run that it audits."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fault_server import FaultServer, serving
from otlp import Collector, collecting
from stack import MANNERS, MODELS, Gateway, gateway, make_home

from gateway.adapters.sql.access import new_key

CANARY = '{"input": {"message": "You oaf"}, "label": "rude", "canary": true}'
CALLER = "00f067aa0ba902b7"


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Where gateways that start now send their spans."""
    async with collecting() as each:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", each.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield each


@pytest.fixture
async def up(
    tmp_path: Path, tiny_llm_folder: Path, database: str, valkey: str, model: FaultServer, collector: Collector
) -> AsyncIterator[Gateway]:
    """A gateway that audits all that its rules clear, and asks a canary."""
    files = {
        "models.toml": MODELS,
        "tasks/manners/task.toml": MANNERS + "[audit]\nsample = 1.0\n",
        "tasks/manners/examples.jsonl": CANARY,
    }
    home = make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json", files)
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm) as each:
            yield each


async def test_an_audit_links_to_the_run_that_it_audits(
    up: Gateway, database: str, model: FaultServer, collector: Collector
) -> None:
    """It has a trace of its own, down to the model server; the run's is kept though its caller's side drops it."""
    key, trace = await new_key(database, "shop", frozenset({"invoke"})), "8af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-{CALLER}-00"}
    async with up.client(key) as client:
        asked = {"input": {"message": "Thank you"}}
        run_id = (await client.post("/tasks/manners/invoke", json=asked, headers=headers)).json()["metadata"]["run_id"]
    run, audit = await collector.root(trace), await collector.root_of_kind("audit")
    assert audit.links == [(run.trace_id, run.id)]
    assert audit.attributes["taskgate.parent_run_id"] == run_id
    assert audit.trace_id == audit.attributes["taskgate.run_id"].replace("-", "")
    heard = [seen.headers["traceparent"] for seen in model.asked]
    assert f"00-{audit.trace_id}-{audit.children[0].children[-1].id}-01" in heard


async def test_a_canary_has_a_trace(up: Gateway, collector: Collector) -> None:
    """Whoever looks for what a server said to it finds the call."""
    canary = await collector.root_of_kind("canary")
    assert (canary.kind, canary.links, canary.attributes["taskgate.status"]) == ("INTERNAL", [], "accepted")
    assert [child.name for child in canary.children[0].children] == ["reserve", "call 127.0.0.1"]
