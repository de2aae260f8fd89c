"""TOML becomes declared values, or a full list of problems."""

import tomllib

from gateway.core.config import construct, read_toml
from gateway.core.problems import Problem
from gateway.core.task import CnnStage, Model, Task

GOOD = """
owner = "trust"
description = "d"
input = "in.json"
output = "out.json"
positive = "violation"
[[stage]]
name = "prefilter"
kind = "cnn"
weights = "w.safetensors"
accept_below = 0.03
"""


def parse(text: str) -> tuple[Task | None, list[Problem]]:
    problems: list[Problem] = []
    return construct(Task, tomllib.loads(text), "task.toml", "", problems), problems


def test_a_good_file_becomes_a_value() -> None:
    """Every key is where the struct says, with its type."""
    task, problems = parse(GOOD)
    assert problems == []
    assert task is not None
    assert task.stage == (CnnStage(name="prefilter", weights="w.safetensors", accept_below=0.03),)


def test_every_mistake_is_reported_at_once() -> None:
    """Unknown keys, wrong types, missing keys and bad ranges, in nested tables too, in one go."""
    text = GOOD.replace('owner = "trust"', 'onwer = "trust"').replace("0.03", "1.5")
    text += (
        'weigths = "x"\n[[stage]]\nname = "llm"\nkind = "chian"\n[cache]\nttl_s = "day"\n[policy.abuse]\nseverity = 9\n'
    )
    _, problems = parse(text)
    places = {p.path: p for p in problems}
    assert set(places) == {
        "onwer", "owner", "stage[0].weigths", "stage[0].accept_below", "stage[1].kind", "cache.ttl_s",
        "policy.abuse.severity", "policy.abuse.text",
    }  # fmt: skip
    assert places["onwer"].hint == "did you mean `owner`?"
    assert places["stage[1].kind"].hint == "did you mean `chain`?"


def test_a_file_that_is_no_toml_is_one_problem() -> None:
    """The parser's own words, and no traceback."""
    problems: list[Problem] = []
    assert read_toml(b"a = [", "models.toml", problems) is None
    assert [p.file for p in problems] == ["models.toml"]


def test_a_key_reads_under_the_name_of_the_file() -> None:
    """`from` is no Python name; the file says it all the same."""
    problems: list[Problem] = []
    raw = tomllib.loads(
        'kind = "tgi"\nurls = ["http://x"]\nmodel_id = "m"\n'
        '[[price]]\nfrom = 2026-01-01\ninput_per_million = "1"\noutput_per_million = "2"'
    )
    model = construct(Model, raw, "models.toml", "m", problems)
    assert problems == []
    assert model is not None
    assert model.price[0].start.year == 2026
