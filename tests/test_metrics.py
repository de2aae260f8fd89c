"""What /metrics shows of a gateway with two worker processes, and that dashboard and alerts ask for nothing else."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from fault_server import FaultServer, good, serving, status
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from stack import MIGRATIONS, ROOT, Gateway, gateway, make_home
from tokenizers import Tokenizer

from gateway.adapters.metrics import Metrics
from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade

TOKENIZER = ROOT / "tasks/message-moderation/adapter/tokenizer.json"
OPERATIONS = ROOT / "docs/operations"
BUDGETS = """
[[quota]]
resource = "cost"
limit = "2.00"
per = "month"
scope = ["task", "caller_team"]

[[quota]]
resource = "requests"
limit = 50
per = "day"
scope = ["task"]
"""
REQUESTS = 40


class World(Struct, frozen=True):
    """A replica of two workers after some traffic: keys by scope, and what was scraped."""

    up: Gateway
    caller: str
    admin: str
    families: dict[str, Any]

    def samples(self, name: str, **labels: str) -> list[Any]:
        """The samples of that name and, at least, those labels."""
        found = (sample for family in self.families.values() for sample in family.samples)
        return [s for s in found if s.name == name and labels.items() <= s.labels.items()]

    def total(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(sample.value for sample in self.samples(name, **labels))


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, valkey: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("metrics")
    home = make_home(folder / "home", TOKENIZER)
    task = home / "tasks/manners/task.toml"
    task.write_text(task.read_text("utf-8") + BUDGETS, "utf-8")
    llm = FaultServer(Tokenizer.from_file(str(TOKENIZER)))
    database = f"sqlite:///{folder / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    caller = await new_key(database, "shop", frozenset({"invoke"}))
    admin = await new_key(database, "platform", frozenset({"admin"}))
    async with serving(llm) as llm_url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_TRACES_EXPORTER", "otlp")
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
            patch.setenv("OTEL_METRICS_EXPORTER", "none")
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            with gateway(home, database, valkey, llm_url, workers="2") as up:
                await traffic(up, caller, llm)
                yield World(up, caller, admin, await scraped(up, admin))


async def traffic(up: Gateway, key: str, llm: FaultServer) -> None:
    """Rules decide, the model decides, the cache answers, the model fails, and a key is wrong."""
    async with up.client(key) as client:

        async def ask(message: str) -> int:
            response = await client.post("/tasks/manners/invoke", json={"input": {"message": message}})
            return response.status_code

        asked = [ask(f"Thank you, number {n}") for n in range(REQUESTS)]
        assert set(await asyncio.gather(*asked)) == {200}
        llm.usual = good
        assert await ask("Metrics have no manners") == 200
        assert await ask("Metrics have no manners") == 200
        llm.usual = status(503)
        assert await ask("The model is of no help here") == 200
    async with up.client("gk_0000000000000000_" + "x" * 43) as client:
        assert (await client.get("/tasks")).status_code == 401


async def scraped(up: Gateway, key: str) -> dict[str, Any]:
    """What a Prometheus with that key sees, once the workers' first look at themselves is in it."""
    async with up.client(key) as client:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            response = await client.get("/metrics")
            assert response.status_code == 200, response.text
            families = {family.name: family for family in text_string_to_metric_families(response.text)}
            if {"taskgate_breaker_state", "taskgate_spans"} <= families.keys() and families["taskgate_spans"].samples:
                return families
            await asyncio.sleep(0.05)
    raise AssertionError(f"never seen whole: {sorted(families)}")


async def test_counts_are_right_across_workers(world: World) -> None:
    """Whichever worker is asked, it shows what all have done."""
    assert world.total("taskgate_requests_total", stage="rules", outcome="accepted") == REQUESTS
    assert world.total("taskgate_requests_total", stage="llm", cache="miss") == 1
    assert world.total("taskgate_requests_total", cache="hit") == 1
    assert world.total("taskgate_requests_total", outcome="deferred") == 1
    assert world.total("taskgate_request_seconds_count") == REQUESTS + 3
    assert world.total("taskgate_problems_total", code="unauthenticated") == 1
    again = await asyncio.gather(*(scraped(world.up, world.admin) for _ in range(8)))
    counts = [sum(s.value for s in each["taskgate_requests"].samples if s.name.endswith("_total")) for each in again]
    assert counts == [REQUESTS + 3] * 8


def test_models_money_and_stages_are_counted(world: World) -> None:
    """Calls by outcome, tokens, cost, label mass and durations."""
    assert world.total("taskgate_model_calls_total", model="tiny", outcome="ok") == 1
    assert world.total("taskgate_model_calls_total", model="tiny", outcome="error") == 3
    assert world.total("taskgate_tokens_total", direction="input") > 0
    assert 0 < world.total("taskgate_cost_total", task="manners") < 0.01
    assert world.total("taskgate_upstream_seconds_count", model="tiny") == 4
    assert world.total("taskgate_label_mass_count", stage="llm") == 1
    assert world.total("taskgate_stage_seconds_count", stage="rules") == REQUESTS + 2
    assert world.total("taskgate_attempts_total", outcome="failed", reason="model_error") == 1
    assert world.total("taskgate_ledger_commit_seconds_count") > 0


def test_the_state_of_the_deployment_is_shown(world: World) -> None:
    """Budgets, reviews, parts, versions and the process itself."""
    (left,) = world.samples("taskgate_budget_remaining", scope="caller_team=shop,task=manners", resource="cost")
    assert 1.9 < left.value < 2.0
    assert world.total("taskgate_reviews_open", task="manners") >= 1
    assert {s.labels["part"] for s in world.samples("taskgate_part_state")} >= {"database", "store", "models"}
    assert world.total("taskgate_task_info", task="manners") == 1
    assert world.total("taskgate_store_up") == 1
    assert [sample.value for sample in world.samples("taskgate_task_differs", task="manners")] == [0]
    assert [sample.value for sample in world.samples("taskgate_replica_barred", model="tiny")] == [0]
    assert world.total("taskgate_worker_resident_bytes") > 0
    assert world.total("taskgate_breaker_state", model="tiny") in (0, 1, 2)


async def test_metrics_need_an_admin_key(world: World) -> None:
    """Another scope is not enough, and without a key nothing is shown."""
    async with world.up.client(world.caller) as client:
        assert (await client.get("/metrics")).status_code == 403
        assert (await client.get("/metrics", headers={"authorization": ""})).status_code == 401


def test_an_exporter_that_is_down_loses_spans_and_says_so_seldom(world: World) -> None:
    """Nobody listens at the endpoint: the requests above were answered, the spans counted as lost, the log is short."""
    assert world.total("taskgate_spans_total", result="lost") > 0
    log = world.up.child.log.read_text("utf-8")
    assert 1 <= log.count("telemetry_not_exported") <= 2 * 2


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every alert and every panel."""
    for group in yaml.safe_load((OPERATIONS / "alerts.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((OPERATIONS / "dashboard.json").read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """The vector selectors of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None:
                yield from selectors(each)


def grouped(text: str) -> set[str]:
    """The labels that an expression groups by."""
    groups = re.findall(r"\b(?:by|ignoring|on|without)\s*\(([^)]*)\)", text)
    return {label.strip() for group in groups for label in group.split(",") if label.strip()}


SCRAPE = {"instance", "job"}


@pytest.mark.parametrize(("where", "text"), list(expressions()))
def test_every_expression_asks_for_what_is_exposed(world: World, where: str, text: str) -> None:
    """It parses as PromQL; each metric is in a live scrape, with each label that the expression names."""
    parsed = promql_parser.parse(text.replace("$__rate_interval", "5m"))
    found = list(selectors(parsed))
    assert found, where
    labels: set[str] = set()
    for selector in found:
        if selector.name == "up":
            continue
        samples = world.samples(selector.name)
        assert samples, f"{where}: nothing exposes {selector.name}"
        known = set(samples[0].labels)
        labels |= known
        for matcher in selector.matchers.matchers:
            assert matcher.name in known | SCRAPE, f"{where}: {selector.name} has no label {matcher.name}"
            if matcher.op == promql_parser.MatchOp.Equal and matcher.name not in ("job", "stage", "part", "result"):
                seen = {sample.labels[matcher.name] for sample in samples}
                assert matcher.value in seen, f"{where}: {selector.name} never has {matcher.name}={matcher.value}"
    assert grouped(text) <= labels | SCRAPE | {"le"}, where


def test_every_alert_has_its_page_in_the_runbook() -> None:
    """And no page is left of an alert that is gone."""
    groups = yaml.safe_load((OPERATIONS / "alerts.yml").read_text("utf-8"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    runbook = (ROOT / "docs/operations.md").read_text("utf-8")
    section = runbook.partition("## Alerts")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)", section, re.MULTILINE) == alerts


def test_every_metric_is_documented(world: World) -> None:
    """docs/operations.md names each, and none that is not exposed."""
    table = (ROOT / "docs/operations.md").read_text("utf-8").partition("## Metrics")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(taskgate_\w+)", table))
    # What has not happened yet is in no file of a worker.
    every = {family.name: family for family in Metrics().collected()} | world.families
    shown = {f"{name}_total" if family.type == "counter" else name for name, family in every.items()}
    assert named == {name for name in shown if name.startswith("taskgate_")}
