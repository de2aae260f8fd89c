"""Traces of a real gateway process on the real task, received as OTLP over a socket."""

import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_server import FaultServer, good, serving, status
from msgspec import Struct
from otlp import Collector, Span, collecting
from snapshot import UPDATING
from stack import MIGRATIONS, ROOT, Gateway, gateway
from tokenizers import Tokenizer

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade

CALLER = "00f067aa0ba902b7"
DELIVERED = "The quote for the bathroom looks right, please book it."
DEFERRED = "Could we agree on another price for this one?"


class World(Struct, frozen=True):
    """A gateway whose spans are received, on a model server that misbehaves on demand."""

    up: Gateway
    key: str
    llm: FaultServer
    collector: Collector

    async def ask(self, message: str, trace: str = "", flags: str = "01") -> httpx.Response:
        """Invoke the moderation task, as part of the trace of a caller if one is given."""
        headers = {"traceparent": f"00-{trace}-{CALLER}-{flags}"} if trace else {}
        async with self.up.client(self.key) as client:
            body = {"input": {"message": message, "sender_role": "customer"}}
            return await client.post("/tasks/message-moderation/invoke", json=body, headers=headers)


def unsure_home(home: Path) -> Path:
    """The shipped task, but for a prefilter that is never sure, and canaries that no scripted server can answer."""
    task = home / "tasks/message-moderation"
    left_out = shutil.ignore_patterns("adapter", "*.gz", "examples.jsonl")
    shutil.copytree(ROOT / "tasks/message-moderation", task, ignore=left_out)
    (task / "adapter").symlink_to(ROOT / "tasks/message-moderation/adapter")
    declared = (task / "task.toml").read_text("utf-8")
    unsure = re.sub(r'(decides = \["clean"\]\naccept_below = )[\d.e-]+', r"\g<1>0.0", declared)
    assert unsure != declared
    (task / "task.toml").write_text(unsure, "utf-8")
    (home / "migrations").symlink_to(MIGRATIONS)
    for name in ("prompts", "models.toml"):
        (home / name).symlink_to(ROOT / name)
    return home


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
async def world(
    tmp_path_factory: pytest.TempPathFactory, valkey: str, environment: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("traces")
    home = unsure_home(folder / "home")
    llm = FaultServer(Tokenizer.from_file(str(ROOT / "tasks/message-moderation/adapter/tokenizer.json")))
    llm.says = [{"A": -0.0001, "B": -12.0}]
    database = f"sqlite:///{folder / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "market", frozenset({"invoke", "read"}))
    async with collecting() as collector, serving(llm) as llm_url:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        environment.setenv("OTEL_METRIC_EXPORT_INTERVAL", "300")
        with gateway(home, database, valkey, llm_url) as up:
            yield World(up, key, llm, collector)


@pytest.fixture(autouse=True)
def well(world: World) -> None:
    world.llm.script.clear()
    world.llm.usual = good


async def test_a_delivered_message_after_a_retry(world: World) -> None:
    """One span over the retries of a model, one per request on the wire, one for whatever else takes time."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    world.llm.script.append(status(503))
    response = await world.ask(DELIVERED, trace)
    metadata = response.json()["metadata"]
    assert (metadata["action"], metadata["stage"], metadata["trace_id"]) == ("deliver", "llm", trace)
    root = await world.collector.root(trace)
    model = "text_completion SmolLM2-135M-Instruct"
    call = ["reserve", "call 127.0.0.1"]
    assert root.tree() == (
        "inference message-moderation",
        ["admit and cache", "attempt rules", "attempt prefilter", (model, call * 2), "record", "keep"],
    )
    assert (root.parent_id, root.kind, root.failed) == (CALLER, "SERVER", False)
    assert response.headers["traceparent"] == f"00-{trace}-{root.id}-01"
    assert root.id == metadata["run_id"].replace("-", "")[-16:]
    said = root.attributes
    assert said["taskgate.fingerprint"] == metadata["fingerprint"]
    assert (said["taskgate.status"], said["taskgate.action"], said["taskgate.cache"]) == ("accepted", "deliver", "miss")
    check_genai(root.children[3], metadata)
    check_times(root)


def check_genai(span: Span, metadata: dict[str, Any]) -> None:
    """The model's span follows the GenAI conventions, and its numbers are the answer's."""
    assert span.kind == "CLIENT"
    said = span.attributes
    assert said["gen_ai.operation.name"] == "text_completion"
    assert said["gen_ai.provider.name"] == "huggingface.tgi"
    assert said["gen_ai.request.model"] == "SmolLM2-135M-Instruct"
    assert said["gen_ai.usage.input_tokens"] == metadata["usage"]["input_tokens"]
    assert said["gen_ai.usage.output_tokens"] == metadata["usage"]["output_tokens"]
    assert f"0.{said['taskgate.cost_nano']:09d}" == metadata["usage"]["cost"]
    first, second = (child for child in span.children if child.name.startswith("call"))
    assert (first.failed, first.attributes["http.response.status_code"]) == (True, 503)
    assert (second.failed, second.attributes["http.request.resend_count"]) == (False, 1)


def check_times(span: Span) -> None:
    """Children lie within their parent, to the clocks' resolution."""
    for child in span.children:
        assert child.start_ns >= span.start_ns - 2_000_000
        assert child.end_ns <= span.end_ns + 2_000_000
        check_times(child)


async def test_the_model_server_hears_of_the_call_that_asks_it(world: World) -> None:
    """The traceparent on the wire names the span of that very request."""
    trace = "1af7651916cd43dd8448eb211c80319c"
    await world.ask("Could you bring the longer ladder on Monday?", trace)
    root = await world.collector.root(trace)
    (model,) = (child for child in root.children if child.kind == "CLIENT")
    heard = world.llm.asked[-1].headers["traceparent"]
    assert heard == f"00-{trace}-{model.children[-1].id}-01"


async def test_a_deferred_message_is_kept_though_its_caller_drops_the_trace(world: World) -> None:
    """Whatever a person must look at has a trace; a plain answer of the same caller has none."""
    deferred, plain = "2af7651916cd43dd8448eb211c80319c", "3af7651916cd43dd8448eb211c80319c"
    await world.ask("Please call me when you are at the door.", plain, "00")
    world.llm.usual = status(503)
    response = await world.ask(DEFERRED, deferred, "00")
    assert response.json()["metadata"]["status"] == "deferred"
    assert response.headers["traceparent"].endswith("-00")
    root = await world.collector.root(deferred)
    said = root.attributes
    assert (said["taskgate.status"], said["taskgate.reason"]) == ("deferred", "model_error")
    (model,) = (child for child in root.children if child.kind == "CLIENT")
    assert (model.failed, model.attributes["error.type"]) == (True, "model_error")
    assert [child.name for child in model.children] == ["reserve", "call 127.0.0.1"] * 3
    assert plain not in world.collector.spans


async def test_no_text_and_no_key_is_in_what_was_sent(world: World) -> None:
    """Spans carry names and numbers; the text of a message stays here unless a setting says otherwise."""
    trace = "4af7651916cd43dd8448eb211c80319c"
    await world.ask("zanzibar is where the plumber comes from", trace)
    await world.collector.root(trace)
    assert b"zanzibar" not in world.collector.bodies
    assert world.key.encode() not in world.collector.bodies
    assert world.key.split("_")[2].encode() not in world.collector.bodies


async def test_every_process_says_who_it_is(world: World) -> None:
    """The resource names service, version and instance."""
    trace = "5af7651916cd43dd8448eb211c80319c"
    await world.ask("Is the small van enough for two sofas?", trace)
    await world.collector.root(trace)
    resource = world.collector.resources[-1]
    assert resource["service.name"] == "taskgate"
    assert resource["service.instance.id"]


async def test_metrics_are_pushed_as_well(world: World) -> None:
    """With an endpoint, OTLP has the same totals as /metrics, under the same names."""
    await world.ask("Thank you, see you on Thursday then.")
    metric = await world.collector.metric("taskgate_requests")
    (point, *_) = metric.sum.data_points
    assert point.as_double >= 1
    assert {each.key for each in point.attributes} == {"task", "stage", "outcome", "cache"}
    histogram = (await world.collector.metric("taskgate_request_seconds")).histogram.data_points[0]
    assert sum(histogram.bucket_counts) == histogram.count > 0


async def test_the_readme_shows_real_traces(world: World) -> None:
    """The trees in the README have the names of spans that a gateway sends; UPDATE_SNAPSHOTS=1 draws them anew."""
    delivered, deferred = "6af7651916cd43dd8448eb211c80319c", "7af7651916cd43dd8448eb211c80319c"
    world.llm.script.append(status(503))
    await world.ask(f"{DELIVERED} Thanks.", delivered)
    world.llm.usual = status(503)
    await world.ask(f"{DEFERRED} Thanks.", deferred)
    drawn = "\n\n".join([drawing(await world.collector.root(trace)) for trace in (delivered, deferred)])
    assert without_numbers(in_the_readme(drawn)) == without_numbers(drawn)


def in_the_readme(drawn: str) -> str:
    """The trees that stand there; those of now, where snapshots are written anew."""
    readme = Path(ROOT / "README.md")
    text = readme.read_text("utf-8")
    block = re.compile(r"(?<=```text\n)inference .*?(?=\n```)", re.DOTALL)
    if UPDATING:
        text = block.sub(lambda _: drawn, text, count=1)
        readme.write_text(text, "utf-8")
    shown = block.search(text)
    assert shown is not None
    return shown[0]


SHOWN = {
    "inference": ("status", "action", "stage", "reason", "cost_nano"),
    "admit and cache": ("cache",),
    "attempt": ("outcome", "reason"),
    "text_completion": ("outcome", "score", "label_mass", "reason"),
    "call": ("call_outcome", "settled"),
}


def drawing(root: Span) -> str:
    """A trace as a tree of text."""
    lines = [(root.name, root)]

    def add(span: Span, before: str) -> None:
        for child in span.children:
            last = child is span.children[-1]
            lines.append((f"{before}{'└─ ' if last else '├─ '}{child.name}", child))
            add(child, before + ("   " if last else "│  "))

    add(root, "")
    return "\n".join(f"{name:<44}{span.ms:7.1f} ms  {details(span)}".rstrip() for name, span in lines)


def details(span: Span) -> str:
    """The attributes that are worth a look."""
    names = next((names for start, names in SHOWN.items() if span.name.startswith(start)), ())
    found = [(name, span.attributes.get(f"taskgate.{name}")) for name in names]
    return " ".join(f"{name}={_short(value)}" for name, value in found if value is not None)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def without_numbers(text: str) -> str:
    """What must not go stale: names, not measurements."""
    return re.sub(r" +", " ", re.sub(r"\d[\d.e+-]*", "N", text))
