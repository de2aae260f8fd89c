"""Stages in order: who may decide, who is sure, and what happens when nobody is."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import cascade
from gateway.core.cascade import Finding, Outcome, StageFailed, Step
from gateway.core.clock import Clock
from gateway.core.errors import BudgetExceeded, Unavailable
from gateway.core.inference import Caller, Invocation
from gateway.core.meter import Meter
from gateway.core.task import ChainStage, CnnStage, Policy, RulesStage, Stage, Task

ACTIONS = {"clean": "deliver", "violation": "review", "deferred": "review"}
RULES = RulesStage(name="rules", file="rules.toml", decides=("violation",))
CNN = CnnStage(name="prefilter", weights="w.safetensors", decides=("clean",), accept_below=0.1)
LLM = ChainStage(
    name="llm", prompt="t/p.v1", model="m", labels={"clean": "A", "violation": "B"}, accept_above=0.6, accept_below=0.4
)
TASK = Task(
    owner="o", description="", input="i", output="o", stage=(RULES, CNN, LLM), positive="violation", actions=ACTIONS,
    policy={"abuse": Policy(severity=3, text="a.md"), "spam": Policy(severity=1, text="s.md")},
)  # fmt: skip
PASSES = Finding(reason="no_rule_matched")


class Says:
    """A stage that finds what it is told to, or fails with it."""

    def __init__(self, finding: Finding | Exception) -> None:
        self.finding = finding

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        if isinstance(self.finding, Exception):
            raise self.finding
        return self.finding


async def run(*findings: Finding | Exception, task: Task = TASK) -> Outcome:
    ids = count()
    clock = Clock(new_id=lambda: f"id-{next(ids)}")
    asked = Invocation(
        id="run", task="t", fingerprint="f", caller=Caller("team", "key", frozenset()), owner_team="o",
        payer_team="team", input={}, canonical=b"{}", received_at=datetime.now(UTC),
    )  # fmt: skip
    # None of these stages makes a model call, so the meter needs no store.
    meter = Meter(asked, (), cast(Any, None), cast(Any, None), clock, cast(Any, None))
    steps = [Step(stage, Says(finding)) for stage, finding in zip(task.stage, findings, strict=False)]
    return await cascade.run(task, steps, {}, meter, clock)


async def test_the_first_stage_that_is_sure_decides() -> None:
    """Later stages are not run, and every attempt is told."""
    outcome = await run(PASSES, Finding(score=0.05), Finding(score=0.99))
    assert outcome.decision.status == "accepted"
    assert (outcome.decision.label, outcome.decision.action, outcome.decision.stage) == (
        "clean",
        "deliver",
        "prefilter",
    )
    assert [(a.stage, a.outcome, a.reason) for a in outcome.attempts] == [
        ("rules", "passed", "no_rule_matched"),
        ("prefilter", "decided", None),
    ]


async def test_a_stage_may_decide_only_the_labels_it_is_given() -> None:
    """A prefilter that finds a violation passes it on, however sure it is."""
    sure = msgspec.structs.replace(CNN, accept_above=0.5)
    task = msgspec.structs.replace(TASK, stage=(RULES, sure, LLM))
    outcome = await run(PASSES, Finding(score=0.999), Finding(score=0.9), task=task)
    assert outcome.attempts[1].reason == "may_not_decide"
    assert outcome.decision.stage == "llm"


@pytest.mark.parametrize(
    ("failure", "reason", "result"),
    [
        (StageFailed("model_unavailable"), "model_unavailable", "failed"),
        (Unavailable("no store"), "store_unavailable", "failed"),
        (BudgetExceeded("no money"), "budget_exceeded", "passed"),
        (ZeroDivisionError(), "stage_error", "failed"),
    ],
)
async def test_what_nobody_decides_is_deferred_with_the_reason(failure: Exception, reason: str, result: str) -> None:
    """Broken is never delivered: the action is that of `deferred`."""
    outcome = await run(PASSES, Finding(score=0.5), failure)
    assert outcome.attempts[-1].outcome == result
    assert (outcome.decision.status, outcome.decision.action, outcome.decision.reason) == ("deferred", "review", reason)
    assert outcome.decision.score == 0.5


async def test_a_broken_cheap_stage_leaves_it_to_the_next() -> None:
    """A fault in one stage costs nobody the answer of another."""
    outcome = await run(RuntimeError(), RuntimeError(), Finding(score=0.9))
    assert (outcome.decision.stage, outcome.decision.label) == ("llm", "violation")


async def test_a_task_without_actions_fails_where_nobody_decides() -> None:
    """There is nobody to hold the item for."""
    task = msgspec.structs.replace(TASK, actions={})
    outcome = await run(PASSES, Finding(score=0.5), Finding(score=0.5), task=task)
    assert (outcome.decision.status, outcome.decision.action, outcome.decision.reason) == ("failed", None, "unsure")


@pytest.mark.parametrize(("policies", "severity"), [(["abuse", "spam"], 3), (["spam"], 1), ([], 1), (["unheard"], 1)])
async def test_severity_is_that_of_the_gravest_policy(policies: list[str], severity: int) -> None:
    """A violation that nobody can name a policy for counts as the mildest; unknown policies do not get out."""
    outcome = await run(Finding(label="violation", output={"policies": policies}))
    assert outcome.decision.output == {
        "label": "violation", "policies": [p for p in policies if p != "unheard"], "severity": severity,
    }  # fmt: skip


async def test_a_clean_item_has_no_policies() -> None:
    """Whatever a stage muttered on the way."""
    outcome = await run(PASSES, PASSES, Finding(score=0.1, output={"policies": ["abuse"]}))
    assert outcome.decision.output == {"label": "clean", "policies": [], "severity": 0}


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_score_gets_at_most_one_label(score: float, a: float, b: float) -> None:
    """At or above accept_above: positive. Below accept_below: the other. Between the two: nobody's."""
    below, above = sorted((a, b))
    stage: Stage = msgspec.structs.replace(LLM, accept_below=below, accept_above=above)
    verdict = cascade.judge(TASK, stage, Finding(score=score))
    expected = "violation" if score >= above else "clean" if score < below else None
    assert verdict.label == expected
    assert (verdict.reason == "unsure") == (expected is None)


@pytest.mark.parametrize("answer", ["text", "json"])
async def test_an_answer_without_label_decides_by_being_there(answer: Any) -> None:
    """Text and JSON were checked by the chain: they decide with their output; a failure or a reason passes."""
    stage = ChainStage(name="llm", prompt="t/p.v1", model="m", answer=answer)
    task = Task(owner="o", description="", input="i", output="o", stage=(stage, stage))
    found = Finding(output={"text": "Gladly."})
    outcome = await run(StageFailed("answer_breaks_schema"), found, task=task)
    assert [attempt.outcome for attempt in outcome.attempts] == ["failed", "decided"]
    assert (outcome.decision.status, outcome.decision.output, outcome.decision.label) == (
        "accepted", {"text": "Gladly."}, None,
    )  # fmt: skip
    outcome = await run(Finding(reason="input_too_long"), Finding(output={}), task=task)
    assert [attempt.outcome for attempt in outcome.attempts] == ["passed", "decided"]
