"""How good a score is, and how sure we are of it. Every rate comes with an interval of 95 %.

Arrays: `truth` is bool (N,), `scores` float (N,), higher meaning more likely a violation. All functions raise LabError
for an empty set, for one class only and for scores that are not numbers: none of these has a metric.
Sources: DeLong, DeLong and Clarke-Pearson 1988 (variance of the AUC); McClish 1989 (standardised partial AUC).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.stats import binomtest, norm, rankdata  # type: ignore[import-untyped]
from sklearn.metrics import (  # type: ignore[import-untyped]
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from gateway.lab.rows import LabError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Statistic = Callable[[Bools, Floats], float]

CONFIDENCE = 0.95
PRODUCTION_PREVALENCE = 0.015
"""Share of violations in the stream of messages that the task serves."""
_Z = float(norm.ppf(0.5 + CONFIDENCE / 2))
BINS = 10


class Interval(Struct, frozen=True):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Bin(Struct, frozen=True):
    """One bin of a reliability diagram: mean score, share of violations, and its weight."""

    score: float
    share: float
    weight: float


class Operating(Struct, frozen=True, kw_only=True):
    """What a system does to rows at the point where it is run. `at_production` re-weights to that prevalence."""

    rows: int
    violations: int
    flagged: int
    precision: Interval | None
    recall: Interval
    false_positive_rate: Interval
    flag_rate: Interval
    f1: float
    precision_at_production: float
    flags_per_1000_at_production: float


class Lift(Struct, frozen=True, kw_only=True):
    """Ratios new ÷ old on the same rows; None where the old system's rate is 0."""

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None
    flag_rate: Interval | None


def checked(truth: Sequence[bool] | Bools, scores: Sequence[float] | Floats) -> tuple[Bools, Floats]:
    """Both as arrays, fit to be measured. Raises LabError."""
    t, s = np.asarray(truth, bool), np.asarray(scores, float)
    if len(t) != len(s):
        raise LabError(f"{len(t)} labels and {len(s)} scores: there must be as many of the one as of the other")
    if not len(t):
        raise LabError("there are no rows to measure")
    if not np.isfinite(s).all():
        raise LabError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite numbers")
    if t.all() or not t.any():
        raise LabError(f"all {len(t)} rows are {'violations' if t.all() else 'clean'}: both classes are needed")
    return t, s


def auc(truth: Bools, scores: Floats) -> Interval:
    """Area under the ROC curve with DeLong's interval, on the logit scale so that it stays within [0, 1]."""
    truth, scores = checked(truth, scores)
    value, variance = delong(truth, scores)
    if variance == 0:
        return _separated(value, int(min(truth.sum(), (~truth).sum())))
    return _on_logit_scale(value, variance)


def delong(truth: Bools, scores: Floats) -> tuple[float, float]:
    """The AUC and DeLong's variance of it, by mid-ranks (ties count half)."""
    bad, good = scores[truth], scores[~truth]
    m, n = len(bad), len(good)
    ranks = rankdata(np.concatenate([bad, good]))
    per_bad = (ranks[:m] - rankdata(bad)) / n
    per_good = 1 - (ranks[m:] - rankdata(good)) / m
    variance = (per_bad.var(ddof=1) / m if m > 1 else 0.0) + (per_good.var(ddof=1) / n if n > 1 else 0.0)
    return float(per_bad.mean()), float(variance)


def macro_auc(groups: Sequence[tuple[Bools, Floats]]) -> Interval:
    """The mean of the AUCs within independent groups; the variance of the mean is that of a sum of independent ones."""
    found = [delong(*checked(t, s)) for t, s in groups]
    if not found:
        raise LabError("no source has both clean rows and violations: there is no AUC within a source")
    value, variance = float(np.mean([v for v, _ in found])), sum(v for _, v in found) / len(found) ** 2
    if variance == 0:
        return _separated(value, min(int(min(t.sum(), (~t).sum())) for t, _ in groups))
    return _on_logit_scale(value, variance)


def bootstrap(statistic: Statistic, truth: Bools, scores: Floats, *, times: int = 1000, seed: int = 7) -> Interval:
    """Percentile interval of `statistic` over resamples that keep the number of rows of each class."""
    truth, scores = checked(truth, scores)
    rng = np.random.default_rng(seed)
    bad, good = np.flatnonzero(truth), np.flatnonzero(~truth)
    values = np.empty(times)
    for i in range(times):
        picked = np.concatenate([rng.choice(bad, len(bad)), rng.choice(good, len(good))])
        values[i] = statistic(truth[picked], scores[picked])
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(truth, scores)), float(low), float(high))


def average_precision(truth: Bools, scores: Floats, prevalence: float | None = None, *, times: int = 200) -> Interval:
    """Area under the precision-recall curve, at the set's own prevalence or re-weighted to another; bootstrapped."""

    def statistic(t: Bools, s: Floats) -> float:
        return float(average_precision_score(t, s, sample_weight=weights(t, prevalence)))

    return bootstrap(statistic, truth, scores, times=times)


def partial_auc(truth: Bools, scores: Floats, max_false_positive_rate: float = 0.1) -> float:
    """AUC over false positive rates up to a limit, standardised: 0.5 is chance, 1 is perfect."""
    truth, scores = checked(truth, scores)
    return float(roc_auc_score(truth, scores, max_fpr=max_false_positive_rate))


def weights(truth: Bools, prevalence: float | None) -> Floats:
    """Row weights of mean 1 under which violations make up `prevalence` of the set; all 1 for None."""
    if prevalence is None:
        return np.ones(len(truth))
    share = truth.mean()
    return np.asarray(np.where(truth, prevalence / share, (1 - prevalence) / (1 - share)), float)


def proportion(hits: int, of: int, *, exact: bool = False) -> Interval | None:
    """A share with Wilson's interval, or Clopper and Pearson's where `exact`; None of nothing."""
    if of == 0:
        return None
    ends = binomtest(hits, of).proportion_ci(CONFIDENCE, method="exact" if exact else "wilson")
    return Interval(hits / of, float(ends.low), float(ends.high))


def lower_bound(hits: int, of: int) -> float:
    """One-sided Clopper-Pearson lower bound of a share: what thresholds are chosen by."""
    return float(binomtest(hits, of, alternative="greater").proportion_ci(CONFIDENCE, method="exact").low)


def operating(truth: Bools, flagged: Bools, prevalence: float) -> Operating:
    """Precision, recall and flag rate of decisions, at the set's prevalence and at production's."""
    truth, _ = checked(truth, flagged.astype(float))
    hits, violations = int((truth & flagged).sum()), int(truth.sum())
    false_hits = int((~truth & flagged).sum())
    recall, false_rate = _share(hits, violations), _share(false_hits, len(truth) - violations)
    bad, good = recall.value * prevalence, false_rate.value * (1 - prevalence)
    return Operating(
        rows=len(truth),
        violations=violations,
        flagged=hits + false_hits,
        precision=proportion(hits, hits + false_hits),
        recall=recall,
        false_positive_rate=false_rate,
        flag_rate=_share(hits + false_hits, len(truth)),
        f1=_f1(truth, flagged),
        precision_at_production=bad / (bad + good) if bad + good else 0.0,
        flags_per_1000_at_production=1000 * (bad + good),
    )


def lift(truth: Bools, new: Bools, old: Bools, *, times: int = 1000, seed: int = 7) -> Lift:
    """How many times the old system's rates the new one's are, with paired, stratified bootstrap intervals."""
    checked(truth, new.astype(float))
    rng = np.random.default_rng(seed)
    bad, good = np.flatnonzero(truth), np.flatnonzero(~truth)
    ratios = []
    for _ in range(times):
        picked = np.concatenate([rng.choice(bad, len(bad)), rng.choice(good, len(good))])
        ratios.append(_ratios(truth[picked], new[picked], old[picked]))
    spread = np.array(ratios)
    return Lift(**{
        name: _spread(value, spread[:, i])
        for i, (name, value) in enumerate(zip(Lift.__struct_fields__, _ratios(truth, new, old), strict=True))
    })  # fmt: skip


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


def calibration_error(truth: Bools, probabilities: Floats, prevalence: float | None = None) -> float:
    """Expected calibration error over `reliability`'s bins: mean gap between score and share, by weight."""
    return sum(b.weight * abs(b.score - b.share) for b in reliability(truth, probabilities, prevalence))


def roc_points(truth: Bools, scores: Floats) -> list[tuple[float, float]]:
    """(false positive rate, recall) from the strictest threshold to the laxest."""
    x, y, _ = roc_curve(truth, scores)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def precision_recall_points(truth: Bools, scores: Floats) -> list[tuple[float, float]]:
    """(recall, precision) from the laxest threshold to the strictest."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    return list(zip(recall.tolist(), precision.tolist(), strict=True))


def best_f1_threshold(truth: Bools, scores: Floats, prevalence: float | None = None) -> float:
    """The score from which on flagging makes F1 largest, re-weighted to `prevalence`; the highest such on a tie."""
    truth, scores = checked(truth, scores)
    order = np.argsort(-scores, kind="stable")
    weight = weights(truth, prevalence)[order]
    hits = np.cumsum(weight * truth[order])
    f1 = 2 * hits / (np.cumsum(weight) + hits[-1])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    best = int(np.argmax(np.where(last_of_tie, f1, -1.0)))
    return float(scores[order][best])


def _share(hits: int, of: int) -> Interval:
    found = proportion(hits, of)
    assert found is not None, "both classes are there: checked"
    return found


def _f1(truth: Bools, flagged: Bools) -> float:
    total = int(truth.sum()) + int(flagged.sum())
    return 2 * int((truth & flagged).sum()) / total if total else 0.0


def _ratios(truth: Bools, new: Bools, old: Bools) -> tuple[float, float, float, float]:
    def rates(flagged: Bools) -> Floats:
        hits, flags = (truth & flagged).sum(), flagged.sum()
        return np.array([hits / flags if flags else 0.0, hits / truth.sum(), _f1(truth, flagged), flags / len(truth)])

    with np.errstate(divide="ignore", invalid="ignore"):
        a, b, c, d = (rates(new) / rates(old)).tolist()
    return a, b, c, d


def _spread(value: float, spread: Floats) -> Interval | None:
    finite: Any = spread[np.isfinite(spread)]
    if not np.isfinite(value) or not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def _on_logit_scale(value: float, variance: float) -> Interval:
    inside = float(np.clip(value, 1e-12, 1 - 1e-12))
    logit, slope = np.log(inside / (1 - inside)), inside * (1 - inside)
    reach = _Z * np.sqrt(variance) / slope
    low, high = (float(1 / (1 + np.exp(-np.clip(x, -700, 700)))) for x in (logit - reach, logit + reach))
    return Interval(value, low, high)


def _separated(value: float, rows: int) -> Interval:
    """No variance was seen: fall back on what as many rows without one error say of a share (Clopper-Pearson)."""
    slack = 1 - ((1 - CONFIDENCE) / 2) ** (1 / rows)
    return Interval(value, max(0.0, value - slack), min(1.0, value + slack))
