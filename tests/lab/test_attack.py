"""The attack suite: packing, and the rates that are made of the cascade's decisions."""

from pathlib import Path

import msgspec
import pytest

from gateway.lab.attack import Case, pack_suite, summarise
from gateway.lab.predictions import Decided, Prediction
from gateway.lab.rows import LabError, read_jsonl

HOME = Path(__file__).parents[2]


def case(name: str, group: str, label: str, **more: str) -> Case:
    fields = {"id": name, "function": f"{group}-{label}", "group": group, "sender_role": "pro", "message": name}
    policy = {"policy": "abuse"} if label == "violation" else {}
    return msgspec.convert({**fields, "label": label, **policy, **more}, Case)


def said(name: str, held: bool) -> tuple[str, Prediction]:
    decided = Decided(status="accepted", rank=0.5, held=held)
    return name, Prediction(id=name, source="s", label="clean", words=1, cascade=decided)


def test_rates_by_hand() -> None:
    """One injected violation of two gets through; two of three disguised violations caught in the clear are kept."""
    cases = [
        case("i1", "injection", "violation", pair="i2"),
        case("i2", "injection", "clean", pair="i1"),
        case("i3", "injection", "violation"),
        *(case(f"o{i}", "obfuscation", "violation", twin_of_clear="clear") for i in range(4)),
        case("f1", "functional", "violation"),
        case("f2", "functional", "clean"),
    ]
    held = {"i1", "o0", "o1", "o3", "f1", "o0:clear", "o1:clear", "o2:clear"}
    forms = [c.id + form for c in cases for form in ("", ":clean", ":fold", ":clear")]
    found = summarise(cases, dict(said(name, name in held) for name in forms), "version", "hash")
    assert found.injection_success is not None
    assert found.injection_success.value == 0.5
    assert found.injection_false_alarms is not None
    assert found.injection_false_alarms.value == 0.0
    assert found.recall_kept is not None
    assert found.recall_kept.value == pytest.approx(2 / 3)
    assert found.recall_disguised is not None
    assert found.recall_disguised.value == 0.75
    assert found.functional_pass_rate.value == 1.0
    assert found.pairs_right is not None
    assert found.pairs_right.value == 1.0


def test_the_shipped_suite_is_what_it_says() -> None:
    """At least 600 cases in at least 25 functions; every injection of a violation has a clean twin."""
    cases = list(read_jsonl(HOME / "tasks/message-moderation/suite.jsonl.gz", Case))
    assert len(cases) >= 600
    assert len({c.function for c in cases}) >= 25
    by_id = {c.id: c for c in cases}
    injected = [c for c in cases if c.group == "injection" and c.label == "violation"]
    assert len(injected) >= 60
    assert all(c.pair is not None and by_id[c.pair].label == "clean" for c in injected)


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([case("a", "functional", "clean", pair="b")], "a: there is no case b"),
        ([case("a", "functional", "clean", policy="abuse")], "a: a clean with policy abuse"),
        ([case("a", "functional", "clean"), case("a", "functional", "clean")], "two cases share an id"),
    ],
)
def test_a_suite_with_a_mistake_is_not_packed(tmp_path: Path, cases: list[Case], says: str) -> None:
    """A pair that is not there, a clean case with a policy, an id used twice: named, and nothing is written."""
    source, out = tmp_path / "suite.jsonl", tmp_path / "suite.jsonl.gz"
    source.write_bytes(b"".join(msgspec.json.encode(c) + b"\n" for c in cases))
    with pytest.raises(LabError, match=says):
        pack_suite(source, out)
    assert not out.exists()
