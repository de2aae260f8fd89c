"""What a task would have cost had its model judged every message, beside what it did cost.

Costs that happened are exact sums of the ledger. Costs that did not are estimates with an interval: for each part of
the suppressed traffic, the number of inferences times the mean price of a sampled prompt and of an observed answer.
Estimates are floats of nano-dollars; they are bills of nothing.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import fmean, variance

from msgspec import Struct

from gateway.core.prices import Tariff

# Standard deviations to either side of 95 % of a normal distribution.
_Z = 1.96
_MILLION = 1_000_000


class Sampled(Struct, frozen=True):
    """A sampled prompt: when it was asked, the model that was not, and its tokens."""

    at: datetime
    model: str
    input_tokens: int


class Outputs(Struct, frozen=True):
    """Output tokens of the task's settled calls: how many calls, their sum, and the sum of squares."""

    calls: int
    tokens: int
    squares: int

    @property
    def mean(self) -> float:
        """0 where no call was seen."""
        return self.tokens / self.calls if self.calls else 0.0

    @property
    def variance(self) -> float:
        """Of the mean."""
        if self.calls < 2:
            return 0.0
        return max(0.0, (self.squares - self.tokens * self.mean) / (self.calls - 1)) / self.calls


class Traffic(Struct, frozen=True, kw_only=True):
    """One task in an interval. `called_nano`: the calls of its own inferences, provisional cost included."""

    inferences: int
    cached: int
    called: int
    held: int
    called_nano: int
    compute_ms: float
    outputs: Outputs
    samples_cached: Sequence[Sampled]
    samples_cheap: Sequence[Sampled]

    @property
    def cheap(self) -> int:
        """Inferences that neither the cache nor a model answered."""
        return self.inferences - self.cached - self.called


class Estimate(Struct, frozen=True):
    """Nano-dollars, and half the width of their 95 % interval; both None where the sample is too small to say."""

    inferences: int
    samples: int
    nano: float | None
    half_nano: float | None

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.inferences + other.inferences,
            self.samples + other.samples,
            None if self.nano is None or other.nano is None else self.nano + other.nano,
            None if self.half_nano is None or other.half_nano is None else self.half_nano + other.half_nano,
        )


def suppressed(
    inferences: int, samples: Sequence[Sampled], outputs: Outputs, tariffs: Mapping[str, Tariff]
) -> Estimate:
    """What calling the model for these inferences would have cost. Raises LookupError for a model without a price.

    Each prompt is priced at its own time. The interval is that of a mean of `samples` drawn without replacement, and of
    the observed mean of the outputs; two estimates' widths are added, as both share the outputs.
    """
    if inferences == 0:
        return Estimate(0, len(samples), 0.0, 0.0)
    if len(samples) < 2:
        return Estimate(inferences, len(samples), None, None)
    costs = [tariffs[each.model].cost_nano(each.input_tokens, 0, each.at) for each in samples]
    per_output = fmean(tariffs[each.model].cost_nano(0, _MILLION, each.at) / _MILLION for each in samples)
    left_out = max(0.0, 1 - len(samples) / inferences)
    deviation = math.sqrt(variance(costs) / len(samples) * left_out + per_output**2 * outputs.variance)
    mean = fmean(costs) + per_output * outputs.mean
    return Estimate(inferences, len(samples), inferences * mean, _Z * inferences * deviation)
