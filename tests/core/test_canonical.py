"""Canonical JSON: one spelling for a value, however its JSON was written, and never one for two values."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.cache import canonical_json

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """The value as someone may write it: members in any order, white space, escapes, exponents."""
    space = st.sampled_from(["", " ", "\n\t"])
    if isinstance(value, dict):
        members = [f"{draw(spelled(key))}{draw(space)}:{draw(spelled(value[key]))}" for key in value]
        return "{" + f"{draw(space)},".join(draw(st.permutations(members))) + "}"
    if isinstance(value, list):
        return "[" + f",{draw(space)}".join(draw(spelled(item)) for item in value) + draw(space) + "]"
    if isinstance(value, float):
        return draw(st.sampled_from([repr(value), f"{value:.17e}", f"{value:.17E}"]))
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def typed(value: Any) -> Any:
    """Comparable as JSON is: `1`, `1.0` and `true` are three values, and the order of members is none."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return (type(value).__name__, repr(value))


@settings(deadline=None)
@given(st.data(), VALUES)
def test_one_value_has_one_spelling(data: st.DataObject, value: Any) -> None:
    """Order of members, white space, escapes and exponents leave no trace: a request is known again."""
    written = data.draw(spelled(value))
    assert canonical_json(msgspec.json.decode(written)) == canonical_json(value)


@settings(deadline=None)
@given(VALUES)
def test_canonical_json_reads_back_as_the_value(value: Any) -> None:
    """Nothing is lost, so values that differ have spellings that differ."""
    assert typed(msgspec.json.decode(canonical_json(value))) == typed(value)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_two_values_have_two_spellings(one: Any, two: Any) -> None:
    """Equal bytes mean equal values, and the other way round."""
    assert (canonical_json(one) == canonical_json(two)) == (typed(one) == typed(two))


@pytest.mark.parametrize(
    ("one", "two"),
    [(1, 1.0), (1, True), (0, False), (0.0, -0.0), ("1", 1), (None, "null"), ([], {}), ({"a": None}, {})],
)
def test_what_a_prompt_shows_differently_is_no_one_value(one: Any, two: Any) -> None:
    """Python calls some of these equal. A prompt does not, so an answer kept for one must not be given to the other."""
    assert canonical_json(one) != canonical_json(two)
