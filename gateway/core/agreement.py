"""Whether the people are right: how far they agree when they judge unseen of each other, and with what is known.

Agreement is that of the first judgement and the blind second one of the same item. Cohen's kappa (1960) is of a pair of
reviewers, Krippendorff's alpha (2011, nominal data) of everybody at once, both for the outcome and for each policy,
named or not. 1 is perfect, 0 is what chance gives. Second opinions are asked of grave blocks more often than of others,
so they speak of what was judged twice. A third's verdict settles a dispute, and counts for or against the two.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from gateway.core.estimates import Estimate, proportion
from gateway.core.reviews import Kind, Outcome

OUTCOME = "outcome"
Value = str | bool
Rule = Literal["policy", "stage"]


class Opinion(Struct, frozen=True):
    """What a reviewer, named by their key, said of a question, and which question it is about."""

    root_id: str
    kind: Kind
    key_id: str
    outcome: Outcome
    policies: frozenset[str] = frozenset()


class Appealed(Struct, frozen=True):
    """An appeal that was judged: the policies and the stage of the machine's decision, and whether the outcome fell."""

    policies: tuple[str, ...]
    stage: str | None
    overturned: bool


class Opinions(Struct, frozen=True):
    """All of a period. `known` are outcomes of gold items by root."""

    said: Sequence[Opinion]
    known: Mapping[str, Outcome]
    appeals: Sequence[Appealed]


class PeopleBook(Protocol):
    """Where opinions are read."""

    async def opinions(self, task: str, start: datetime, end: datetime) -> Opinions:
        """Second opinions, thirds, gold answers and appeals judged in [start, end), with what they are about.

        Raises Unavailable.
        """


class Raters(Protocol):
    """Agreement of raters beyond chance. Opinions are values; None is where chance alone would have made them agree."""

    def kappa(self, pairs: Sequence[tuple[Value, Value]]) -> float | None:
        """Cohen's kappa of two raters, over what each said of the same item."""

    def alpha(self, items: Iterable[Sequence[Value]]) -> float | None:
        """Krippendorff's alpha for nominal values, over what anybody said of each item."""


class Pair(Struct, frozen=True, kw_only=True):
    """Two reviewers on one question: `kappa` is None where both always said the same one thing."""

    about: str
    keys: tuple[str, str]
    items: int
    agreed: Estimate
    kappa: float | None


class Alpha(Struct, frozen=True, kw_only=True):
    """Everybody on one question; None where nobody ever differed from one single value."""

    about: str
    items: int
    alpha: float | None


class Accuracy(Struct, frozen=True, kw_only=True):
    """A reviewer beside what is known: right on gold items, and upheld by the third in disputes."""

    key_id: str
    gold: int
    right: Estimate | None
    disputes: int
    upheld: Estimate | None


class Overturned(Struct, frozen=True, kw_only=True):
    """Appeals by what the machine said: the share that brought the outcome down."""

    by: Rule
    name: str
    appeals: int
    rate: Estimate


class PeopleQuality(Struct, frozen=True, kw_only=True):
    """All of it."""

    pairs: Sequence[Pair]
    alphas: Sequence[Alpha]
    reviewers: Sequence[Accuracy]
    overturned: Sequence[Overturned]


def quality_of(found: Opinions, raters: Raters) -> PeopleQuality:
    """What the opinions of a period say of those who gave them."""
    twice = _judged_twice(found.said)
    abouts = (OUTCOME, *sorted({name for pair in twice for each in pair for name in each.policies}))
    return PeopleQuality(
        pairs=[pair for about in abouts for pair in _pairs(about, twice, raters)],
        alphas=[
            Alpha(about=about, items=len(twice), alpha=raters.alpha([[_value(about, o) for o in p] for p in twice]))
            for about in abouts
            if twice
        ],
        reviewers=_reviewers(found, twice),
        overturned=[*_overturned(found.appeals, "policy"), *_overturned(found.appeals, "stage")],
    )


def _judged_twice(said: Iterable[Opinion]) -> list[tuple[Opinion, Opinion]]:
    """The first judgement of an item and the blind second."""
    first = {each.root_id: each for each in said if each.kind in ("held", "audit")}
    return [(first[each.root_id], each) for each in said if each.kind == "second" and each.root_id in first]


def _value(about: str, said: Opinion) -> Value:
    return said.outcome if about == OUTCOME else about in said.policies


def _pairs(about: str, twice: Sequence[tuple[Opinion, Opinion]], raters: Raters) -> list[Pair]:
    by_keys: dict[tuple[str, str], list[tuple[Value, Value]]] = defaultdict(list)
    for pair in twice:
        one, other = sorted(pair, key=lambda said: said.key_id)
        by_keys[one.key_id, other.key_id].append((_value(about, one), _value(about, other)))
    return [
        Pair(
            about=about,
            keys=keys,
            items=len(rated),
            agreed=_share([a == b for a, b in rated]),
            kappa=raters.kappa(rated),
        )
        for keys, rated in sorted(by_keys.items())
    ]


def _reviewers(found: Opinions, twice: Sequence[tuple[Opinion, Opinion]]) -> list[Accuracy]:
    right: dict[str, list[bool]] = defaultdict(list)
    for said in found.said:
        if said.kind == "gold" and said.root_id in found.known:
            right[said.key_id].append(said.outcome == found.known[said.root_id])
    thirds = {each.root_id: each.outcome for each in found.said if each.kind == "third"}
    upheld: dict[str, list[bool]] = defaultdict(list)
    for pair in twice:
        if pair[0].root_id in thirds and pair[0].outcome != pair[1].outcome:
            for said in pair:
                upheld[said.key_id].append(said.outcome == thirds[said.root_id])
    return [
        Accuracy(
            key_id=key,
            gold=len(right[key]),
            right=proportion(sum(right[key]), len(right[key])),
            disputes=len(upheld[key]),
            upheld=proportion(sum(upheld[key]), len(upheld[key])),
        )
        for key in sorted({*right, *upheld})
    ]


def _overturned(appeals: Iterable[Appealed], by: Rule) -> list[Overturned]:
    """An item that names several policies counts for each; one that names none, for `none`."""
    fell: dict[str, list[bool]] = defaultdict(list)
    for each in appeals:
        names = (each.policies or ("none",)) if by == "policy" else (each.stage or "none",)
        for name in names:
            fell[name].append(each.overturned)
    return [Overturned(by=by, name=name, appeals=len(some), rate=_share(some)) for name, some in sorted(fell.items())]


def _share(hits: Sequence[bool]) -> Estimate:
    found = proportion(sum(hits), len(hits))
    assert found is not None, "there is one at least"
    return found
