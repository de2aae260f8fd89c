"""What opinions say of those who gave them."""

import pytest

from gateway.adapters.raters import NltkRaters
from gateway.core.agreement import (
    Appealed,
    Opinion,
    Opinions,
    quality_of,
)
from gateway.core.reviews import Kind, Outcome


def said(root: str, kind: Kind, key: str, outcome: Outcome, *policies: str) -> Opinion:
    """An opinion."""
    return Opinion(root, kind, key, outcome, frozenset(policies))


OPINIONS = Opinions(
    said=[
        said("1", "held", "ann", "block", "abuse"),
        said("1", "second", "ben", "block", "spam_scam"),
        said("2", "held", "ben", "deliver"),
        said("2", "second", "ann", "block", "abuse"),
        said("2", "third", "cat", "block", "abuse"),
        said("3", "audit", "ann", "deliver"),
        said("3", "second", "ben", "deliver"),
        said("9", "gold", "ann", "block"),
        said("9", "gold", "ben", "deliver"),
    ],
    known={"9": "block"},
    appeals=[
        Appealed(("abuse", "spam_scam"), "llm", True),
        Appealed(("abuse",), "rules", False),
        Appealed((), None, True),
    ],
)  # fmt: skip


def test_pairs_agree_on_the_outcome_and_on_each_policy() -> None:
    """Whoever came first, a pair is one; each policy is a question of its own."""
    pairs = {pair.about: pair for pair in quality_of(OPINIONS, NltkRaters()).pairs}
    assert set(pairs) == {"outcome", "abuse", "spam_scam"}
    assert {pair.keys for pair in pairs.values()} == {("ann", "ben")}
    assert (pairs["outcome"].items, pairs["outcome"].agreed.value) == (3, pytest.approx(2 / 3))
    assert pairs["abuse"].agreed.value == pytest.approx(1 / 3)
    assert {alpha.about: alpha.items for alpha in quality_of(OPINIONS, NltkRaters()).alphas} == dict.fromkeys(pairs, 3)


def test_reviewers_beside_what_is_known_and_the_third() -> None:
    """A gold item's answer and the verdict on a dispute count; items on which nobody differed do not."""
    reviewers = {each.key_id: each for each in quality_of(OPINIONS, NltkRaters()).reviewers}
    assert {name: (each.gold, each.disputes) for name, each in reviewers.items()} == {"ann": (1, 1), "ben": (1, 1)}
    ann, ben = reviewers["ann"], reviewers["ben"]
    assert ann.right is not None
    assert ben.upheld is not None
    assert (ann.right.value, ben.upheld.value) == (1.0, 0.0)
    assert 0 < ann.right.low < ann.right.high == 1.0


def test_overturn_rates_by_policy_and_stage() -> None:
    """An item of two policies counts for both."""
    rates = {
        (each.by, each.name): (each.rate.value, each.appeals) for each in quality_of(OPINIONS, NltkRaters()).overturned
    }
    assert rates == {
        ("policy", "abuse"): (0.5, 2), ("policy", "spam_scam"): (1.0, 1), ("policy", "none"): (1.0, 1),
        ("stage", "llm"): (1.0, 1), ("stage", "rules"): (0.0, 1), ("stage", "none"): (1.0, 1),
    }  # fmt: skip


def test_nothing_was_said() -> None:
    """An empty period is empty."""
    found = quality_of(Opinions([], {}, []), NltkRaters())
    assert [found.pairs, found.alphas, found.reviewers, found.overturned] == [[], [], [], []]
