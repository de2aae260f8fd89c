"""What is kept and shared: properties over the real engine and store, and over everything that shapes an answer."""

from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from engines import Echo, ask, asked, echoing, engine_on
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from gateway.adapters.redis import RedisStore
from gateway.core.cache import cache_key
from gateway.core.fingerprint import fingerprint
from gateway.core.prompts import Prompt
from gateway.core.task import Cache, ChainStage, CnnStage, Model, Policy, Price, Quota, RulesStage, Task

TEAMS = st.sampled_from(["red", "blue"])
WORDS = st.sampled_from(["hello", "Hello", "hello "])


@settings(max_examples=40, deadline=None)
@given(
    scope=st.sampled_from(["team", "task"]),
    requests=st.lists(st.tuples(TEAMS, WORDS, st.integers(0, 1)), min_size=2, max_size=12),
)
async def test_no_answer_crosses_teams_unless_the_task_says_so(
    stores: list[RedisStore], scope: Any, requests: list[tuple[str, str, int]]
) -> None:
    """Whatever is asked, in whatever order and at whichever process: the answer is that of the same words, seen from
    the same team, and with `scope = "task"` the first team's for all.
    """
    task, engines = echoing(Echo(), uuid4().hex, scope), [engine_on(store) for store in stores]
    first: dict[object, str] = {}
    for team, message, at in requests:
        answer = await ask(engines[at], task, team, message)
        output = answer.inference.decision.output
        whose = first.setdefault(message if scope == "task" else (team, message), team)
        assert output == {"label": "rude", "seen": whose, "message": message}


@settings(max_examples=40, deadline=None)
@given(requests=st.lists(st.tuples(WORDS, st.booleans(), st.booleans()), min_size=1, max_size=12))
async def test_cache_control_is_obeyed(stores: list[RedisStore], requests: list[tuple[str, bool, bool]]) -> None:
    """`no-cache` never reads what is kept, and what it gets is kept; `no-store` reads, and keeps nothing."""
    runner = Echo()
    task, engine = echoing(runner, uuid4().hex), engine_on(stores[0])
    kept: set[str] = set()
    for message, no_cache, no_store in requests:
        runs = runner.runs
        answer = await ask(engine, task, "red", message, no_cache=no_cache, no_store=no_store)
        expected = "hit" if message in kept and not no_cache else "miss"
        assert (answer.inference.cache, runner.runs - runs) == (expected, int(expected == "miss"))
        if expected == "miss" and not no_store:
            kept.add(message)


@settings(max_examples=20, deadline=None)
@given(requests=st.lists(st.integers(0, 1), min_size=2, max_size=6))
async def test_a_cached_hold_still_holds(stores: list[RedisStore], requests: list[int]) -> None:
    """However often an answer whose action is `review` is repeated, each item gets a review of its own."""
    runner = Echo()
    task, engines = echoing(runner, uuid4().hex), [engine_on(store) for store in stores]
    answers = [(await ask(engines[at], task, "red", "hello")).inference for at in requests]
    assert {answer.decision.action for answer in answers} == {"review"}
    assert len({answer.review_id for answer in answers} - {None}) == len(requests)
    assert (runner.runs, [answer.cache for answer in answers]) == (1, ["miss", *["hit"] * (len(requests) - 1)])


class Setup(Struct, frozen=True):
    """A task as far as it shapes answers: every field does."""

    prompt: str
    model_id: str
    revision: str | None
    model_adapter: str | None
    stage_adapter: str | None
    chat_format: str
    labels: tuple[str, str]
    accept_above: float
    accept_below: float | None
    min_label_mass: float
    max_output_tokens: int
    prefilter_below: float
    decides: str
    positive: str
    action: str
    severity: int
    input: bytes
    output: bytes
    rules: bytes
    weights: bytes
    weights_facts: bytes
    calibration: bytes
    adapter_file: bytes | None
    chain: bytes | None


class Surroundings(Struct, frozen=True):
    """What a task has besides, none of which shapes an answer."""

    description: str
    callers: str
    quota: int
    cache: str
    url: str
    price: str
    timeout_s: float
    retries: int
    max_concurrency: int


FILE = (b"{}", b"{ }")
PARTS: dict[str, tuple[Any, Any]] = {
    "prompt": ("Is it rude?", "Is it rude ?"),
    "model_id": ("small", "large"),
    "revision": (None, "r2"),
    "model_adapter": (None, "tuned"),
    "stage_adapter": (None, "tuned"),
    "chat_format": ("chatml", "llama3"),
    "labels": (("A", "B"), ("B", "A")),
    "accept_above": (0.5, 0.51),
    "accept_below": (None, 0.5),
    "min_label_mass": (0.9, 0.8),
    "max_output_tokens": (256, 128),
    "prefilter_below": (0.1, 0.2),
    "decides": ("fine", "rude"),
    "positive": ("rude", "fine"),
    "action": ("review", "block"),
    "severity": (1, 2),
    "input": FILE,
    "output": FILE,
    "rules": FILE,
    "weights": FILE,
    "weights_facts": FILE,
    "calibration": FILE,
    "adapter_file": (None, b"w"),
    "chain": (None, b"#"),
}
BASE = Setup(**{name: values[0] for name, values in PARTS.items()})
# Mostly the same value, so that two drawn setups often agree in all of their fields.
SETUPS = st.builds(Setup, **{name: st.sampled_from([one] * 40 + [other]) for name, (one, other) in PARTS.items()})
AROUND = st.builds(
    Surroundings,
    description=st.sampled_from(["a", "b"]),
    callers=st.sampled_from(["*", "red"]),
    quota=st.integers(1, 2),
    cache=st.sampled_from(["team", "task"]),
    url=st.sampled_from(["http://a", "http://b"]),
    price=st.sampled_from(["1", "2"]),
    timeout_s=st.sampled_from([1.0, 2.0]),
    retries=st.integers(0, 1),
    max_concurrency=st.integers(1, 2),
)


def version(setup: Setup, around: Surroundings, folder: Path) -> str:
    """The fingerprint of a task that is set up so."""
    folder.mkdir()
    files = {
        "i.json": setup.input,
        "o.json": setup.output,
        "rules.toml": setup.rules,
        "w.safetensors": setup.weights,
        "w.json": setup.weights_facts,
        "c.json": setup.calibration,
        "adapter/a.safetensors": setup.adapter_file,
        "chain.py": setup.chain,
    }
    (folder / "adapter").mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return fingerprint(
        _task(setup, around), folder, {"p": Prompt("p", setup.prompt, "u")}, {"m": _model(setup, around)}
    )


def _task(setup: Setup, around: Surroundings) -> Task:
    chain = ChainStage(
        name="llm",
        prompt="p",
        model="m",
        adapter=setup.stage_adapter,
        labels=dict(zip(("fine", "rude"), setup.labels, strict=True)),
        calibration="c.json",
        accept_above=setup.accept_above,
        accept_below=setup.accept_below,
        min_label_mass=setup.min_label_mass,
        max_output_tokens=setup.max_output_tokens,
        timeout_s=around.timeout_s,
        retries=around.retries,
    )
    cnn = CnnStage(name="cnn", weights="w.safetensors", accept_below=setup.prefilter_below, decides=(setup.decides,))
    return Task(
        owner="o",
        description=around.description,
        input="i.json",
        output="o.json",
        positive=setup.positive,
        stage=(RulesStage(name="rules", file="rules.toml"), cnn, chain),
        callers=(around.callers,),
        actions={"rude": setup.action, "fine": "deliver", "deferred": "review"},
        policy={"abuse": Policy(severity=setup.severity, text="p.md")},
        quota=(Quota(resource="requests", limit=around.quota, per="day", scope=("task",)),),
        cache=Cache(ttl_s=60, scope=around.cache),  # type: ignore[arg-type]
    )


def _model(setup: Setup, around: Surroundings) -> Model:
    price = Price(start=date(2026, 1, 1), input_per_million=around.price, output_per_million=around.price)
    return Model(
        kind="tgi",
        urls=(around.url,),
        model_id=setup.model_id,
        revision=setup.revision,
        adapter=setup.model_adapter,
        chat_format=setup.chat_format,
        price=(price,),
        max_concurrency=around.max_concurrency,
    )


@settings(max_examples=100, deadline=None)
@given(one=SETUPS, two=SETUPS, around=st.tuples(AROUND, AROUND))
def test_no_answer_survives_a_change_that_shapes_answers(
    tmp_path_factory: pytest.TempPathFactory, one: Setup, two: Setup, around: tuple[Surroundings, Surroundings]
) -> None:
    """Two versions have one cache key exactly where everything that shapes their answers is equal, whatever else is."""
    folder = tmp_path_factory.mktemp("versions")
    versions = [version(one, around[0], folder / "one"), version(two, around[1], folder / "two")]
    request = asked(echoing(Echo(), ""), "red", "hello")
    keys = {cache_key(replace(request, fingerprint=each), Cache(ttl_s=1)) for each in versions}
    assert (len(keys) == 1) == (one == two)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_makes_another_version(tmp_path: Path, part: str) -> None:
    """Every single one of the parts that shape answers, changed alone."""
    around = Surroundings("a", "*", 1, "team", "http://a", "1", 1.0, 0, 1)
    changed = replace(BASE, **{part: PARTS[part][1]})
    assert version(BASE, around, tmp_path / "one") != version(changed, around, tmp_path / "two")
