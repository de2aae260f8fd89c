"""What an example wants of an answer: a label, or fields and fragments of what was said."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from stack import ROOT

from gateway.core.examples import missed
from gateway.core.inference import Decision
from gateway.core.task import Example


def wants(**wanted: Any) -> Example:
    return Example(input={}, **wanted)


def said(**output: Any) -> Decision:
    return Decision(status="accepted", output=output)


@pytest.mark.parametrize(
    ("example", "decision", "wrong"),
    [
        (wants(label="fine"), Decision(status="accepted", label="fine", output={}), None),
        (wants(label="fine"), Decision(status="accepted", label="rude", output={}), "rude, not fine"),
        (wants(label="fine"), Decision(status="deferred", reason="unsure"), "unsure, not fine"),
        (wants(), said(reply="Gladly."), None),
        (wants(), Decision(status="failed", reason="answer_breaks_schema"), "answer_breaks_schema"),
        (wants(lacks=("@",)), Decision(status="failed", reason="model_timeout"), "model_timeout"),
        (wants(output={"budget": 80}), said(budget=80, place="Leeds"), None),
        (wants(output={"budget": None}), said(budget=80), "`budget` is 80, not None"),
        (wants(output={"budget": None}), said(place="Leeds"), "`budget` is 'missing', not None"),
        (wants(holds=("nine",)), said(reply="At Nine, then."), None),
        (wants(holds=("nine", "Friday")), said(reply="At nine."), "lacks 'Friday'"),
        (wants(lacks=("HTTP",)), said(reply="See http://x"), "holds 'HTTP'"),
    ],
)
def test_an_answer_is_right_or_it_is_said_why_not(example: Example, decision: Decision, wrong: str | None) -> None:
    """A label where one is wanted; else an accepted output with these fields, these fragments, and none of those."""
    assert missed(example, decision) == wrong


@pytest.mark.parametrize("adapter", sorted(ROOT.glob("tasks/*/adapter")), ids=lambda folder: folder.parent.name)
def test_a_task_that_ships_with_an_adapter_has_canaries(adapter: Path) -> None:
    """More than one label, so that no model which always says the same passes for it."""
    lines = (adapter.parent / "examples.jsonl").read_bytes().splitlines()
    examples = [msgspec.json.decode(line, type=Example) for line in lines]
    assert len({example.label for example in examples if example.canary}) > 1
