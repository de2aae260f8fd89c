"""How good a score is, and how sure we are of it. Every rate comes with an interval of 95 %.

Arrays: `truth` is bool (N,), `scores` float (N,), higher meaning more likely a violation. All functions raise LabError
for an empty set, for one class only and for scores that are not numbers: none of these has a metric.
Sources: DeLong, DeLong and Clarke-Pearson 1988 (variance of the AUC); McClish 1989 (standardised partial AUC).
"""

from collections.abc import Callable, Sequence

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
DRAWS = 200


class Interval(Struct, frozen=True):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Operating(Struct, frozen=True, kw_only=True):
    """What a system does to rows at the point where it is run. `at_production` re-weights to that prevalence."""

    rows: int
    violations: int
    flagged: int
    precision: Interval | None
    recall: Interval
    false_positive_rate: Interval
    flag_rate: Interval
    f1: Interval
    precision_at_production: Interval
    flags_per_1000_at_production: Interval


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


def average_precision(truth: Bools, scores: Floats, prevalence: float | None = None, *, times: int = DRAWS) -> Interval:
    """Area under the precision-recall curve, at the set's own prevalence or re-weighted to another; bootstrapped."""

    def statistic(t: Bools, s: Floats) -> float:
        return float(average_precision_score(t, s, sample_weight=weights(t, prevalence)))

    return bootstrap(statistic, truth, scores, times=times)


def partial_auc(truth: Bools, scores: Floats, max_false_positive_rate: float = 0.1) -> Interval:
    """AUC over false positive rates up to a limit, standardised: 0.5 is chance, 1 is perfect; bootstrapped."""

    def statistic(t: Bools, s: Floats) -> float:
        return float(roc_auc_score(t, s, max_fpr=max_false_positive_rate))

    return bootstrap(statistic, truth, scores, times=DRAWS)


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

    def drawn(statistic: Callable[[Bools, Bools], float]) -> Interval:
        return bootstrap(lambda t, f: statistic(t, f > 0), truth, flagged.astype(float), times=DRAWS)

    def flags(t: Bools, f: Bools) -> float:
        return float(weights(t, prevalence)[f].sum() / len(t))

    return Operating(
        rows=len(truth),
        violations=violations,
        flagged=hits + false_hits,
        precision=proportion(hits, hits + false_hits),
        recall=_share(hits, violations),
        false_positive_rate=_share(false_hits, len(truth) - violations),
        flag_rate=_share(hits + false_hits, len(truth)),
        f1=drawn(_f1),
        precision_at_production=drawn(lambda t, f: flags(t, t & f) / flags(t, f) if f.any() else 0.0),
        flags_per_1000_at_production=drawn(lambda t, f: 1000 * flags(t, f)),
    )


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
