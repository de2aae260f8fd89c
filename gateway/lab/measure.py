"""Four systems on the same rows, each measured in the same way, whole and in parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from gateway.lab import metrics
from gateway.lab.lift import Lift, Matched, lift, matched
from gateway.lab.metrics import PRODUCTION_PREVALENCE, Bools, Floats, Interval, Operating
from gateway.lab.predictions import Prediction
from gateway.lab.reliability import at_prevalence, calibration_error, reliability
from gateway.lab.routing import Cascade, cascade_facts, routing_curve
from gateway.lab.rows import CORPUS, MARKETPLACE_DEV
from gateway.lab.systems import Loaded

_FALSE_POSITIVES = (("hard_negative", "hard negatives", (0.15, 0.05)), ("plain", "plain messages", (0.02,)))
"""At which shares of flagged clean messages of the marketplace, by kind, recall is told."""
_SHORT, _LONG = 12, 40


class Part(Struct, frozen=True, kw_only=True):
    """A system on some of the rows. Without both labels there is no AUC, only a rate of flags."""

    rows: int
    violations: int
    auc: Interval | None
    recall: Interval | None
    false_positive_rate: Interval | None


class System(Struct, frozen=True, kw_only=True):
    """One system on all rows. `auc` is the headline: the macro mean of AUCs within each source that has both labels.

    Scores are probabilities at production prevalence. Their calibration error is told on the set as it is, with the
    scores carried to the set's own share of violations (`corrected`), and with the rows weighted to production.
    """

    auc: Interval
    pooled_auc: Interval
    pooled_auc_bootstrap: Interval
    partial_auc_10: Interval
    average_precision: Interval
    average_precision_at_production: Interval
    operating: Operating
    threshold: float | None
    calibration_error: Interval | None
    calibration_error_corrected: Interval | None
    calibration_error_at_production: Interval | None
    parts: dict[str, Part]
    marketplace: dict[str, Any]


class Curves(Struct, frozen=True, kw_only=True):
    """Points for the plots: (x, y) per system or bin."""

    roc: dict[str, list[tuple[float, float]]]
    precision_recall: dict[str, list[tuple[float, float]]]
    reliability: dict[str, list[tuple[float, float, float]]]
    routing: list[tuple[float, float, float]]


class Evaluation(Struct, frozen=True, kw_only=True):
    """metrics.json. `about` names data, task version and command by hash."""

    about: dict[str, Any]
    systems: dict[str, System]
    cascade: Cascade
    lift: dict[str, Lift]
    matched_lift: dict[str, Matched]
    curves: Curves


class Columns(Struct, frozen=True):
    """What a system says of all rows: ranking scores, flags, and probabilities where it claims them."""

    scores: Floats
    flagged: Bools
    threshold: float | None = None
    probabilities: Floats | None = None


def measure(
    loaded: Loaded,
    predictions: Sequence[Prediction],
    about: Mapping[str, Any],
    *,
    prompted_threshold: float | None = None,
    prevalence: float = PRODUCTION_PREVALENCE,
) -> Evaluation:
    """Measure. Raises LabError where the rows cannot be measured."""
    truth, _ = metrics.checked([p.label == loaded.positive for p in predictions], np.zeros(len(predictions)))
    columns = dict(_columns(loaded, predictions, prompted_threshold))
    systems = {name: _system(predictions, truth, column, prevalence) for name, column in columns.items()}
    new, others = columns["cascade"], [name for name in ("previous", "prompted") if name in columns]
    return Evaluation(
        about={**about, "production_prevalence": prevalence},
        systems=systems,
        cascade=cascade_facts(loaded, predictions, truth, columns["tuned"].flagged, prevalence),
        lift={f"cascade over {name}": lift(truth, new.flagged, columns[name].flagged) for name in others},
        matched_lift={f"cascade over {name}": matched(truth, new.scores, columns[name].flagged) for name in others},
        curves=_curves(predictions, truth, columns, prevalence),
    )


def slices(prediction: Prediction) -> Iterator[str]:
    """The parts of the set that a row belongs to, but for its policy."""
    yield f"source/{prediction.source}"
    yield "origin/synthetic" if prediction.synthetic else "origin/real"
    length = "short" if prediction.words <= _SHORT else "long" if prediction.words > _LONG else "medium"
    yield f"length/{length}"
    if prediction.difficulty is not None:
        yield f"difficulty/{prediction.difficulty}"


def _columns(
    loaded: Loaded, predictions: Sequence[Prediction], prompted_threshold: float | None
) -> Iterator[tuple[str, Columns]]:
    old = [p.previous for p in predictions if p.previous is not None]
    if len(old) == len(predictions):
        yield "previous", Columns(np.array([p.score for p in old]), np.array([p.flagged for p in old]))
    margins = [p.prompted for p in predictions if p.prompted is not None]
    if len(margins) == len(predictions) and prompted_threshold is not None:
        said = np.array(margins)
        yield "prompted", Columns(said, said >= prompted_threshold, prompted_threshold)
    tuned, above = np.array([p.llm for p in predictions]), loaded.chain.accept_above or 0.5
    yield "tuned", Columns(np.array([p.llm_margin for p in predictions]), tuned >= above, above, tuned)
    yield (
        "cascade",
        Columns(np.array([p.cascade.rank for p in predictions]), np.array([p.cascade.held for p in predictions])),
    )


def _system(predictions: Sequence[Prediction], truth: Bools, said: Columns, prevalence: float) -> System:
    errors = _calibration_errors(truth, said.probabilities, prevalence)
    sources = np.array([p.source for p in predictions])
    within = [(truth[sources == s], said.scores[sources == s]) for s in sorted(set(sources.tolist()))]
    return System(
        auc=metrics.macro_auc([(t, s) for t, s in within if t.any() and not t.all()]),
        pooled_auc=metrics.auc(truth, said.scores),
        pooled_auc_bootstrap=metrics.bootstrap(_area, truth, said.scores, times=300),
        partial_auc_10=metrics.partial_auc(truth, said.scores),
        average_precision=metrics.average_precision(truth, said.scores),
        average_precision_at_production=metrics.average_precision(truth, said.scores, prevalence),
        operating=metrics.operating(truth, said.flagged, prevalence),
        threshold=said.threshold,
        calibration_error=errors[0],
        calibration_error_corrected=errors[1],
        calibration_error_at_production=errors[2],
        parts=_parts(predictions, truth, said),
        marketplace=_marketplace(predictions, truth, said),
    )


def _calibration_errors(truth: Bools, said: Floats | None, prevalence: float) -> Sequence[Interval | None]:
    """As it is, corrected, at production; None of a system that claims no probabilities."""
    if said is None:
        return None, None, None
    corrected = at_prevalence(said, prevalence, float(truth.mean()))
    return (
        calibration_error(truth, said),
        calibration_error(truth, corrected),
        calibration_error(truth, said, prevalence),
    )


def _area(truth: Bools, scores: Floats) -> float:
    return metrics.delong(truth, scores)[0]


def _parts(predictions: Sequence[Prediction], truth: Bools, said: Columns) -> dict[str, Part]:
    members: dict[str, list[int]] = {}
    for i, prediction in enumerate(predictions):
        for name in slices(prediction):
            members.setdefault(name, []).append(i)
    for policy in sorted({p.policy for p in predictions if p.policy is not None}):
        # A policy's violations against all clean rows: clean rows have no policy to be grouped by.
        members[f"policy/{policy}"] = [i for i, p in enumerate(predictions) if p.policy == policy or not truth[i]]
    return {name: _part(truth[rows], said.scores[rows], said.flagged[rows]) for name, rows in sorted(members.items())}


def _part(truth: Bools, scores: Floats, flagged: Bools) -> Part:
    both = bool(truth.any() and not truth.all())
    return Part(
        rows=len(truth),
        violations=int(truth.sum()),
        auc=metrics.auc(truth, scores) if both else None,
        recall=metrics.proportion(int((truth & flagged).sum()), int(truth.sum())),
        false_positive_rate=metrics.proportion(int((~truth & flagged).sum()), int((~truth).sum())),
    )


def _marketplace(predictions: Sequence[Prediction], truth: Bools, said: Columns) -> dict[str, Any]:
    """The marketplace's own messages: AUC of each kind of violation against hard negatives, and recall where a given
    share of the hard negatives, or of the plain messages, is flagged."""
    own = np.array([p.source in (CORPUS, MARKETPLACE_DEV) for p in predictions])
    kind = np.array([p.difficulty or "" for p in predictions])
    hard, bad = own & ~truth & (kind == "hard_negative"), own & truth
    if not hard.any() or not bad.any():
        return {}
    found: dict[str, Any] = {"auc": metrics.auc(truth[own], said.scores[own]) if (own & ~truth).any() else None}
    for name in ("obvious", "subtle", "obfuscated"):
        chosen = hard | (bad & (kind == name))
        if (bad & (kind == name)).any():
            found[f"auc {name} against hard negatives"] = metrics.auc(truth[chosen], said.scores[chosen])
    for name, title, rates in _FALSE_POSITIVES:
        clean = np.sort(said.scores[own & ~truth & (kind == name)])[::-1]
        for rate in rates if len(clean) else ():
            threshold = clean[min(int(rate * len(clean)), len(clean) - 1)]
            hits = int((said.scores[bad] > threshold).sum())
            found[f"recall at {rate:.0%} false positives on {title}"] = metrics.proportion(hits, int(bad.sum()))
    return found


def _curves(
    predictions: Sequence[Prediction], truth: Bools, columns: Mapping[str, Columns], prevalence: float
) -> Curves:
    return Curves(
        roc={name: _thinned(metrics.roc_points, truth, c.scores) for name, c in columns.items()},
        precision_recall={name: _thinned(metrics.precision_recall_points, truth, c.scores)
                          for name, c in columns.items()},
        reliability={name: [(b.score, b.share, b.weight) for b in reliability(truth, c.probabilities)]
                     for name, c in columns.items() if c.probabilities is not None},
        routing=routing_curve(predictions, truth, prevalence),
    )  # fmt: skip


def _thinned(
    points: Callable[[Bools, Floats], list[tuple[float, float]]], truth: Bools, scores: Floats, most: int = 300
) -> list[tuple[float, float]]:
    found = points(truth, scores)
    step = max(1, len(found) // most)
    return [*found[::step], found[-1]]
