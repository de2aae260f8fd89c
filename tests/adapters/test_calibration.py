"""Log-probabilities → labels → scores."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.calibration import Platt, label_logprobs, log_odds, read_calibration, softmax
from gateway.adapters.model_port import Position, Token

LABELS: dict[int | str, str] = {7: "clean", 8: "violation"}


def _position(*tokens: tuple[int, float]) -> Position:
    listed = tuple(Token(str(id_), logprob, id_) for id_, logprob in tokens)
    return Position(listed[0], listed)


def test_labels_are_matched_by_id() -> None:
    """Two tokens with one text are told apart by their ids."""
    spaced, bare = Token("A", -1.0, 99), Token("A", -3.0, 7)
    found = label_logprobs(Position(spaced, (spaced, bare, Token("B", -2.0, 8))), LABELS)
    assert found.by_label == {"clean": -3.0, "violation": -2.0}
    assert found.mass == pytest.approx(math.exp(-3) + math.exp(-2))


def test_a_missing_label_is_bounded_by_the_lowest_listed() -> None:
    """The bound counts for the score, not for the mass."""
    found = label_logprobs(_position((8, -0.1), (3, -4.0), (4, -5.5)), LABELS)
    assert found.by_label == {"clean": -5.5, "violation": -0.1}
    assert found.mass == pytest.approx(math.exp(-0.1))


def test_more_tokens_than_asked_for_are_read() -> None:
    """On ties a server lists more than were asked for; the last of them counts like the first."""
    tied = _position(*((i, -2.0) for i in range(9)))
    assert label_logprobs(tied, LABELS).by_label == {"clean": -2.0, "violation": -2.0}


def test_without_a_list_the_chosen_token_says_what_is_left() -> None:
    """Servers that list nothing still give the chosen token: the other label has at most the rest."""
    found = label_logprobs(Position(Token("B", math.log(0.9), 8)), LABELS)
    assert found.by_label["clean"] == pytest.approx(math.log(0.1))
    assert found.mass == pytest.approx(0.9)


def test_two_labels_score_by_their_difference() -> None:
    """score = sigmoid(a · (lp(positive) − lp(negative)) + b)."""
    odds = log_odds({"clean": -2.0, "violation": -0.5}, "violation")
    assert odds == pytest.approx(1.5)
    assert Platt(a=2.0, b=-1.0).score(odds) == pytest.approx(1 / (1 + math.exp(-2.0)))


def test_softmax_is_over_the_labels_only() -> None:
    """What the model gave to other tokens is not part of a label's probability."""
    found = softmax({"a": math.log(0.3), "b": math.log(0.1)})
    assert found == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}


@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6), odds=st.floats(-1e9, 1e9))
def test_a_score_is_always_a_probability(a: float, b: float, odds: float) -> None:
    """No odds and no calibration give anything outside [0, 1]."""
    assert 0 <= Platt(a, b).score(odds) <= 1


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_a_score_rises_with_the_odds(x: float, y: float) -> None:
    """With a positive slope, likelier never scores lower."""
    low, high = sorted((x, y))
    assert Platt(0.7, 0.3).score(low) <= Platt(0.7, 0.3).score(high)


def test_a_calibration_file_may_hold_notes() -> None:
    """The two numbers are read; what else the lab wrote is left alone."""
    assert read_calibration(b'{"method": "platt", "a": 1.5, "b": -0.25, "rows": 900}') == Platt(1.5, -0.25)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"method": "isotonic"}', b'{"method": "platt", "a": "x", "b": 0}'])
def test_anything_else_is_refused(text: bytes) -> None:
    """A file that is no Platt calibration raises ValueError; there is no silent default."""
    with pytest.raises(ValueError, match=r"\S"):
        read_calibration(text)
