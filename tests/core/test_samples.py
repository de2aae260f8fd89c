"""Which runs are drawn to be looked at again."""

from typing import Any

import pytest
from msgspec.structs import replace
from stories import inference, invocation, new_id

from gateway.core.inference import Decision, Inference
from gateway.core.samples import asks_people, audits, draw
from gateway.core.task import Audit, ChainStage, CnnStage, Review, RulesStage, Task

RULES, CNN = RulesStage(name="rules", file="r.toml"), CnnStage(name="prefilter", weights="w")
LLM = ChainStage(name="llm", prompt="p", model="m", labels={"clean": "A", "violation": "B"})


def task(**changed: Any) -> Task:
    """Moderation, with everything sampled."""
    values: dict[str, Any] = {
        "owner": "trust", "description": "d", "input": "i", "output": "o", "stage": (RULES, CNN, LLM),
        "positive": "violation", "actions": {"clean": "deliver", "violation": "block", "deferred": "review"},
        "audit": Audit(sample=1.0), "review": Review(sample=1.0),
    }  # fmt: skip
    return Task(**{**values, **changed})


def ran(stage: str | None = "prefilter", label: str = "clean", action: str = "deliver", **asked: Any) -> Inference:
    """A run that a stage decided."""
    status: Any = "accepted" if stage else "deferred"
    decision = Decision(status=status, action=action, label=label, score=0.01, stage=stage)
    return replace(inference(invocation(**asked)), decision=decision)


@pytest.mark.parametrize(
    ("run", "asks"),
    [
        (ran("prefilter"), "llm"),
        (ran("llm"), "people"),
        (ran("rules", "violation", "block"), "people"),
        (ran("llm", "violation", "review"), None),
        (ran(None, action="review"), None),
        (ran(kind="audit"), None),
    ],
)
def test_who_is_asked(run: Inference, asks: str | None) -> None:
    """The LLM of what a cheap stage cleared, people of what else nobody holds; held items are judged anyway."""
    drawn = draw(task(), run)
    assert (drawn.asks if drawn else None) == asks


def test_nothing_is_drawn_that_nobody_could_answer_for() -> None:
    """A task without a positive label, or that declares no share, has no sample; without an LLM people are asked."""
    assert draw(task(positive=None), ran()) is None
    assert draw(task(audit=None, review=None), ran()) is None
    drawn = draw(task(stage=(RULES, CNN)), ran())
    assert drawn is not None
    assert drawn.asks == "people"
    assert not audits(task(stage=(RULES, CNN)))


def test_the_draw_is_made_by_the_run_id_alone_in_the_declared_share() -> None:
    """The same run is always drawn, or never; of many ids one in twenty, with that probability said."""
    declared, runs = task(audit=Audit(sample=0.05)), [ran(id=new_id()) for _ in range(20_000)]
    drawn = [draw(declared, run) for run in runs]
    assert drawn == [draw(declared, replace(run, duration_ms=99.0)) for run in runs]
    found = [each for each in drawn if each is not None]
    assert {each.probability for each in found} == {0.05}
    # Five standard deviations of a binomial count.
    assert abs(len(found) - 1000) < 5 * (20_000 * 0.05 * 0.95) ** 0.5


def test_people_see_all_that_the_llm_does_not_clear_and_a_share_of_the_rest() -> None:
    """Misses are rare: every one that the LLM points at is looked at, with probability 1; the rest with the share."""
    ids = [new_id() for _ in range(4000)]
    assert {asks_people(id_, "flagged", 0.1) for id_ in ids} == {1.0}
    for verdict in ("cleared", "none"):
        asked = [asks_people(id_, verdict, 0.1) for id_ in ids]
        assert {each for each in asked if each} == {0.1}
        assert abs(sum(each is not None for each in asked) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
