"""What a task says of other models: in the fingerprint where it shapes answers, and checked."""

from datetime import date
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.core.fingerprint import fingerprint
from gateway.core.meaning import contradictions
from gateway.core.prompts import parse_prompt
from gateway.core.task import ChainStage, Fallback, Model, Price, Task

PROMPTS = {"t/p.v1": parse_prompt("t/p.v1", "Judge.\n---\n{{message}}\n")}
PRICE = (Price(start=date(2020, 1, 1), input_per_million="1", output_per_million="2"),)
MODELS = {name: Model(kind="tgi", urls=("http://x",), model_id=name, price=PRICE) for name in ("a", "b", "c")}
OWN = ChainStage(
    name="llm", prompt="t/p.v1", model="a", labels={"fine": "A", "rude": "B"}, accept_above=0.5, calibration="a.json"
)
OTHER = Fallback(model="b", calibration="b.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in.json", "out.json", "a.json", "b.json"):
        (tmp_path / name).write_text("{}", "utf-8")
    return tmp_path


def task(stage: ChainStage) -> Task:
    actions = {"fine": "deliver", "rude": "review", "deferred": "review"}
    return Task(
        owner="o",
        description="d",
        input="in.json",
        output="out.json",
        stage=(stage,),
        positive="rude",
        actions=actions,
    )


def mark(stage: ChainStage, folder: Path) -> str:
    return fingerprint(task(stage), folder, PROMPTS, MODELS)


def test_a_fallback_shapes_answers_and_a_hedge_does_not(folder: Path) -> None:
    """Another fallback, or another calibration of it, is another version; when to hedge is only patience."""
    plain, with_other = mark(OWN, folder), mark(replace(OWN, fallback=(OTHER,)), folder)
    assert mark(replace(OWN, hedge_after_s=0.5), folder) == plain
    assert len({plain, with_other, mark(replace(OWN, fallback=(replace(OTHER, model="c"),)), folder)}) == 3
    (folder / "b.json").write_text('{"b": 1}', "utf-8")
    assert mark(replace(OWN, fallback=(OTHER,)), folder) != with_other


def said(stage: ChainStage) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in contradictions(task(stage), "task.toml")]


def test_a_fallback_of_a_calibrated_stage_is_calibrated_too() -> None:
    """Thresholds are probabilities: the raw score of another model is none."""
    assert said(replace(OWN, fallback=(OTHER,))) == []
    ((path, message),) = said(replace(OWN, fallback=(Fallback(model="b"),)))
    assert (path, message) == ("stage[0].fallback[0].calibration", "this key is missing")


def test_a_model_is_not_its_own_fallback() -> None:
    """Where it cannot answer once, it cannot twice."""
    ((path, _),) = said(replace(OWN, fallback=(Fallback(model="a", calibration="a.json"),)))
    assert path == "stage[0].fallback[0].model"
