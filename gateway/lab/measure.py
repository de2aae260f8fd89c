"""Four systems on the same rows, each measured in the same way, whole and in parts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from msgspec import Struct

from gateway.core.task import CnnStage
from gateway.lab import metrics
from gateway.lab.metrics import PRODUCTION_PREVALENCE, Bools, Floats, Interval, Lift, Operating
from gateway.lab.predictions import Prediction
from gateway.lab.rows import CORPUS, MARKETPLACE_DEV, SERVICE_SOURCES, UNTRAINED_SOURCES
from gateway.lab.systems import Loaded

SYSTEMS = ("previous", "prompted", "tuned", "cascade")
HARD_FALSE_POSITIVES = (0.15, 0.05)
_SHORT, _LONG = 12, 40
_ROUTING_POINTS = 60


class Part(Struct, frozen=True, kw_only=True):
    """A system on some of the rows. Without both labels there is no AUC, only a rate of flags."""

    rows: int
    violations: int
    auc: Interval | None
    recall: Interval | None
    false_positive_rate: Interval | None


class System(Struct, frozen=True, kw_only=True):
    """One system on all rows. `auc` is the headline: the macro mean of AUCs within each source that has both labels."""

    auc: Interval
    pooled_auc: Interval
    pooled_auc_bootstrap: Interval
    partial_auc_10: float
    average_precision: Interval
    average_precision_at_production: Interval
    operating: Operating
    threshold: float | None
    calibration_error: float | None
    calibration_error_at_production: float | None
    parts: dict[str, Part]
    marketplace: dict[str, Any]


class Cascade(Struct, frozen=True, kw_only=True):
    """What the stages do to the stream of messages. `at_production` re-weights rows to that prevalence.

    `routed_of` is the share routed to the LLM of each source and label, and of all service talk.
    """

    decided_by: dict[str, int]
    routed: Interval
    routed_at_production: float
    routed_of: dict[str, Interval]
    prefilter_recall: Interval | None
    prefilter_recall_lower_bound: float | None
    recall_lost_to_prefilter: Interval | None
    deferred: Interval
    llm_calls_per_1000_at_production: float
    cost_nano_per_1000: int
    cost_nano_per_1000_at_production: int
    policy_named_rightly: Interval | None


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
    new = columns["cascade"].flagged
    return Evaluation(
        about={**about, "production_prevalence": prevalence},
        systems=systems,
        cascade=cascade_facts(loaded, predictions, truth, columns["tuned"].flagged, prevalence),
        lift={f"cascade over {name}": metrics.lift(truth, new, columns[name].flagged)
              for name in ("previous", "prompted") if name in columns},
        curves=_curves(predictions, truth, columns, prevalence),
    )  # fmt: skip


def slices(prediction: Prediction) -> Iterator[str]:
    """The parts of the set that a row belongs to, but for its policy."""
    yield f"source/{prediction.source}"
    yield "origin/synthetic" if prediction.synthetic else "origin/real"
    length = "short" if prediction.words <= _SHORT else "long" if prediction.words > _LONG else "medium"
    yield f"length/{length}"
    if prediction.difficulty is not None:
        yield f"difficulty/{prediction.difficulty}"


def routing_curve(
    predictions: Sequence[Prediction], truth: Bools, prevalence: float
) -> list[tuple[float, float, float]]:
    """(threshold, prefilter recall, share routed to the LLM at `prevalence`) over thresholds of the prefilter.

    Rows that a rule decides are never routed; violations among them are not the prefilter's to lose.
    """
    open_rows = np.array([p.cnn is not None and p.cascade.stage != "rules" for p in predictions])
    scores = np.array([p.cnn if p.cnn is not None else 1.0 for p in predictions])
    bad = scores[truth & open_rows]
    if not len(bad):
        return []
    weight = metrics.weights(truth, prevalence)
    unread = np.array([p.cnn is None for p in predictions])
    points = []
    for threshold in np.unique(np.quantile(bad, np.linspace(0, 1, _ROUTING_POINTS))):
        routed = (open_rows & (scores >= threshold)) | unread
        share = float((weight * routed).sum() / weight.sum())
        points.append((float(threshold), float((bad >= threshold).mean()), share))
    return points


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
    def error(at: float | None) -> float | None:
        return None if said.probabilities is None else metrics.calibration_error(truth, said.probabilities, at)

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
        calibration_error=error(None),
        calibration_error_at_production=error(prevalence),
        parts=_parts(predictions, truth, said),
        marketplace=_marketplace(predictions, truth, said),
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
    share of the hard negatives is flagged."""
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
    ranked = np.sort(said.scores[hard])[::-1]
    for rate in HARD_FALSE_POSITIVES:
        threshold = ranked[min(int(rate * len(ranked)), len(ranked) - 1)]
        hits = int((said.scores[bad] > threshold).sum())
        found[f"recall at {rate:.0%} false positives on hard negatives"] = metrics.proportion(hits, int(bad.sum()))
    return found


def cascade_facts(
    loaded: Loaded, predictions: Sequence[Prediction], truth: Bools, llm: Bools, prevalence: float
) -> Cascade:
    """Who decides, what is routed, what the prefilter loses, what it costs; `llm` is what the LLM alone would flag."""
    called = np.array([p.cascade.llm_called for p in predictions])
    deferred = np.array([p.cascade.status != "accepted" for p in predictions])
    names = {step.stage.name for step in loaded.task.steps if isinstance(step.stage, CnnStage)}
    cleared = np.array([p.cascade.stage in names and not p.cascade.held for p in predictions])
    by_rules = np.array([bool(p.rules) and p.cascade.held and not p.cascade.llm_called for p in predictions])
    seen = int((truth & ~by_rules).sum())
    kept = int((truth & ~by_rules & ~cleared).sum())
    weight, costs = metrics.weights(truth, prevalence), _costs(loaded, predictions)
    named = [p.policy in p.cascade.policies for p, t in zip(predictions, truth, strict=True)
             if t and p.policy is not None and p.cascade.label == loaded.positive]  # fmt: skip
    share = float((weight * called).sum() / len(truth))
    return Cascade(
        decided_by=dict(Counter(p.cascade.stage or "nobody" for p in predictions)),
        routed=_share(called),
        routed_at_production=share,
        routed_of=_routed_of(predictions, called),
        prefilter_recall=metrics.proportion(kept, seen),
        prefilter_recall_lower_bound=metrics.lower_bound(kept, seen) if seen else None,
        recall_lost_to_prefilter=metrics.proportion(int((truth & cleared & llm).sum()), int(truth.sum())),
        deferred=_share(deferred),
        llm_calls_per_1000_at_production=1000 * share,
        cost_nano_per_1000=round(1000 * float(costs.mean())),
        cost_nano_per_1000_at_production=round(1000 * float((weight * costs).sum() / len(truth))),
        policy_named_rightly=metrics.proportion(sum(named), len(named)),
    )


def _routed_of(predictions: Sequence[Prediction], called: Bools) -> dict[str, Interval]:
    members: dict[str, list[int]] = {}
    for i, prediction in enumerate(predictions):
        members.setdefault(f"{prediction.source}/{prediction.label}", []).append(i)
        if prediction.source in (*SERVICE_SOURCES, *UNTRAINED_SOURCES):
            members.setdefault("service talk", []).append(i)
    return {name: _share(called[rows]) for name, rows in sorted(members.items())}


def _costs(loaded: Loaded, predictions: Sequence[Prediction]) -> Floats:
    """Nano-dollars of each row's LLM call at today's price; 0 where none is made."""
    tariff, now = loaded.model.tariff, datetime.now(UTC)
    written = 1 + bool(loaded.chain.policies)
    return np.array([
        tariff.cost_nano(p.llm_input_tokens, written, now) if p.cascade.llm_called else 0 for p in predictions
    ], float)  # fmt: skip


def _share(flags: Bools) -> Interval:
    found = metrics.proportion(int(flags.sum()), len(flags))
    assert found is not None, "there are rows: checked"
    return found


def _curves(
    predictions: Sequence[Prediction], truth: Bools, columns: Mapping[str, Columns], prevalence: float
) -> Curves:
    return Curves(
        roc={name: _thinned(metrics.roc_points, truth, c.scores) for name, c in columns.items()},
        precision_recall={name: _thinned(metrics.precision_recall_points, truth, c.scores)
                          for name, c in columns.items()},
        reliability={name: [(b.score, b.share, b.weight) for b in metrics.reliability(truth, c.probabilities)]
                     for name, c in columns.items() if c.probabilities is not None},
        routing=routing_curve(predictions, truth, prevalence),
    )  # fmt: skip


def _thinned(
    points: Callable[[Bools, Floats], list[tuple[float, float]]], truth: Bools, scores: Floats, most: int = 300
) -> list[tuple[float, float]]:
    found = points(truth, scores)
    step = max(1, len(found) // most)
    return [*found[::step], found[-1]]
