"""Whatever stands in a file of configuration: a value or problems, never an exception, and no key is passed over."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.config import construct, read_toml
from gateway.core.problems import Problem
from gateway.core.task import Declared, Model, Stage, Task

TASK: dict[str, Any] = {
    "owner": "trust",
    "description": "d",
    "input": "in.json",
    "output": "out.json",
    "positive": "violation",
    "callers": ["*"],
    "stage": [
        {"name": "rules", "kind": "rules", "file": "rules.toml"},
        {"name": "cnn", "kind": "cnn", "weights": "w", "accept_below": 0.03, "decides": ["clean"]},
        {"name": "llm", "kind": "chain", "prompt": "p", "model": "m", "labels": {"clean": "A", "violation": "B"}},
    ],
    "actions": {"clean": "deliver", "violation": "review", "deferred": "review"},
    "policy": {"abuse": {"severity": 3, "text": "abuse.md"}},
    "quota": [{"resource": "requests", "limit": 10, "per": "minute", "scope": ["task"]}],
    "cache": {"ttl_s": 60},
    "audit": {"sample": 0.1},
    "review": {"sla_minutes": 5},
    "gate": {"recall": 0.9},
}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DATES = st.just(date(2026, 1, 1)) | st.just(time(9)) | st.just(datetime(2026, 1, 1, tzinfo=UTC))
LEAVES = st.booleans() | st.integers() | st.floats() | WORDS | DATES
TOML = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where something stands in a parsed file."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(value: Any, at: Place, new: Any) -> Any:
    """A copy with something else at one place; the copy lacks what `new` is None for."""
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) > 1:
        copy[at[0]] = changed(value[at[0]], at[1:], new)  # type: ignore[index]
    elif new is None:
        del copy[at[0]]  # type: ignore[arg-type]
    else:
        copy[at[0]] = new  # type: ignore[index]
    return copy


def read(raw: object, kind: type[Declared] = Task) -> tuple[Declared | None, list[Problem]]:
    problems: list[Problem] = []
    return construct(kind, raw, "task.toml", "", problems), problems


PLACES = sorted(places(TASK), key=str)
# Tables whose keys are known: the task itself, its stages and what else is declared; not those that name labels.
KNOWN = [(), *(place for place in PLACES if place[0] in ("stage", "quota") and len(place) == 2),
         ("policy", "abuse"), ("cache",), ("audit",), ("review",), ("gate",)]  # fmt: skip


def test_the_task_that_is_mutated_here_is_a_good_one() -> None:
    """What the other tests change is without problems before."""
    task, problems = read(TASK)
    assert problems == []
    assert isinstance(task, Task)


@settings(deadline=None)
@given(st.binary(max_size=200) | WORDS.map(str.encode) | st.sampled_from([b"a = 0001-01-32", b"a = 1e999", b"a = nan"]))
def test_any_bytes_are_toml_or_one_problem(text: bytes) -> None:
    """The parser's own exceptions end here, and name the file."""
    problems: list[Problem] = []
    parsed = read_toml(text, "task.toml", problems)
    assert (parsed is None) == (len(problems) == 1)


@pytest.mark.parametrize(
    "text", [b"a = " + b"[" * 20_000, b"a = " + b"9" * 5_000, b"a = " + b"{b=" * 20_000], ids=["deep", "long", "tables"]
)
def test_too_deep_and_too_long_are_problems_too(text: bytes) -> None:
    """What exceeds Python's own limits is a problem of the file, not a traceback."""
    problems: list[Problem] = []
    assert read_toml(text, "task.toml", problems) is None
    assert [problem.file for problem in problems] == ["task.toml"]


@settings(deadline=None)
@given(TOML, st.sampled_from([Task, Model, *get_args(Stage)]))
def test_any_value_is_read_or_has_problems(raw: Any, kind: type[Declared]) -> None:
    """Nothing raises; there is a value exactly where there is no problem."""
    value, problems = read(raw, kind)
    assert (value is None) == bool(problems)


@settings(deadline=None)
@given(st.sampled_from(PLACES), st.none() | TOML)
def test_any_mutation_is_read_or_has_problems(at: Place, new: Any) -> None:
    """Anything in any place of a good task, or something left out: a value of the right types, or problems."""
    task, problems = read(changed(TASK, at, new))
    assert (task is None) == bool(problems)
    if task is not None:
        msgspec.convert(msgspec.to_builtins(task, str_keys=False), Task)


@settings(deadline=None)
@given(st.sampled_from(KNOWN), st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1), TOML, st.sampled_from(PLACES))
def test_an_unknown_key_is_always_reported(at: Place, word: str, value: Any, other: Place) -> None:
    """Wherever it stands, whatever it holds, and whatever else is wrong in another table."""
    key = f"{word}_x"
    raw = changed(TASK, (*at, key), value)
    if at[:1] != other[:1]:
        raw = changed(raw, other, None)
    _, problems = read(raw)
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*at, key)).lstrip(".")
    assert [problem.message for problem in problems if problem.path == place] == ["unknown key"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_probability_is_a_number_between_0_and_1(number: float) -> None:
    """`nan` is TOML, and compares with nothing: it is no threshold."""
    _, problems = read(changed(TASK, ("stage", 1, "accept_below"), number))
    assert [problem.path for problem in problems] == ["stage[1].accept_below"]
