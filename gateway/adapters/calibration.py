"""From the log-probabilities of label tokens to a score: a probability of the positive label that means what it says.

Platt scaling: J. Platt, "Probabilistic outputs for support vector machines" (1999), here on the log-odds of the tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.adapters.model_port import Position


class Platt(Struct, frozen=True, tag_field="method", tag="platt"):
    """score = sigmoid(a · log-odds + b). Further keys of the file are notes of whoever fitted it."""

    a: float
    b: float

    def score(self, log_odds: float) -> float:
        """A probability in [0, 1]; never NaN, also for odds beyond the range of floats."""
        x = self.a * log_odds + self.b
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(max(x, -700)) / (1 + math.exp(max(x, -700)))


UNCALIBRATED = Platt(1.0, 0.0)


def read_calibration(text: bytes) -> Platt:
    """Parse `{"method": "platt", "a": …, "b": …}`. Raises ValueError with what is wrong."""
    try:
        return msgspec.json.decode(text, type=Platt)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


class LabelLogprobs(NamedTuple):
    """Log-probabilities by label, as far as a position tells; and the share of probability that lies on labels."""

    by_label: Mapping[str, float]
    mass: float


def label_logprobs(position: Position, tokens: Mapping[int | str, str]) -> LabelLogprobs:
    """Read the labels of `tokens` (token key → label) off a position.

    A label that the server did not list cannot be likelier than the least likely token that it did list; where only
    the chosen token is known, not likelier than what that one left over.
    """
    listed = position.top or (position.chosen,)
    found = {tokens[t.key]: t.logprob for t in listed if t.key in tokens}
    bound = min(t.logprob for t in listed) if len(listed) > 1 else _rest(position.chosen.logprob)
    mass = math.fsum(math.exp(min(lp, 0.0)) for lp in found.values())
    return LabelLogprobs({label: found.get(label, bound) for label in tokens.values()}, min(mass, 1.0))


def log_odds(logprobs: Mapping[str, float], positive: str) -> float:
    """Log-odds of `positive` against the other labels together; with two labels, the difference of their log-probs."""
    return logprobs[positive] - _log_sum([lp for label, lp in logprobs.items() if label != positive])


def softmax(logprobs: Mapping[str, float]) -> dict[str, float]:
    """Probabilities of the labels among themselves."""
    total = _log_sum(list(logprobs.values()))
    return {label: math.exp(lp - total) for label, lp in logprobs.items()}


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def _rest(logprob: float) -> float:
    return math.log(max(-math.expm1(min(logprob, 0.0)), 1e-9))
