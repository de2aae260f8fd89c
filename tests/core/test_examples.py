"""What an example wants of an answer: a label, or fields and fragments of what was said."""

from typing import Any

import pytest

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
