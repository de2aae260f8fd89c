"""What scores are worth as probabilities: reliability diagram, calibration error, the step to another prevalence."""

import numpy as np
from msgspec import Struct

from gateway.lab.metrics import DRAWS, Bools, Floats, Interval, bootstrap, checked, weights

BINS = 10


class Bin(Struct, frozen=True):
    """One bin of a reliability diagram: mean score, share of violations, and its weight."""

    score: float
    share: float
    weight: float


def reliability(truth: Bools, probabilities: Floats, prevalence: float | None = None) -> list[Bin]:
    """Equal-width bins of the score that are not empty, re-weighted to `prevalence`."""
    truth, probabilities = checked(truth, probabilities)
    weight = weights(truth, prevalence)
    place = np.clip((probabilities * BINS).astype(int), 0, BINS - 1)
    bins = []
    for b in np.unique(place):
        inside = place == b
        total = weight[inside].sum()
        score = float((weight * probabilities)[inside].sum() / total)
        bins.append(Bin(score, float((weight * truth)[inside].sum() / total), float(total / weight.sum())))
    return bins


def calibration_error(truth: Bools, probabilities: Floats, prevalence: float | None = None) -> Interval:
    """Expected calibration error over `reliability`'s bins: mean gap between score and share, by weight; bootstrapped.

    A resample's gaps have noise of their own on top: the interval reaches higher than it reaches low.
    """

    def statistic(t: Bools, p: Floats) -> float:
        return sum(b.weight * abs(b.score - b.share) for b in reliability(t, p, prevalence))

    return bootstrap(statistic, truth, probabilities, times=DRAWS)


def at_prevalence(probabilities: Floats, meant_for: float, prevalence: float) -> Floats:
    """Probabilities that hold at one share of violations, as they are at another: their odds times the ratio of the
    prior odds (Saerens, Latinne and Decaestecker 2002)."""
    ratio = (prevalence / (1 - prevalence)) / (meant_for / (1 - meant_for))
    return np.asarray(ratio * probabilities / (ratio * probabilities + 1 - probabilities), float)
