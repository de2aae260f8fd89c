"""What the stages do to the stream of messages: who decides, what is routed to the LLM, what that costs and loses."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from msgspec import Struct

from gateway.core.task import CnnStage
from gateway.lab import metrics
from gateway.lab.metrics import Bools, Floats, Interval
from gateway.lab.predictions import Prediction
from gateway.lab.rows import SERVICE_SOURCES, UNTRAINED_SOURCES
from gateway.lab.systems import Loaded

_CURVE_POINTS = 60


class Cascade(Struct, frozen=True, kw_only=True):
    """What the stages do to the stream of messages. `at_production` re-weights rows to that prevalence.

    `routed_of` is the share routed to the LLM of each source and label, and of all service talk.
    """

    decided_by: dict[str, int]
    routed: Interval
    routed_at_production: Interval
    routed_of: dict[str, Interval]
    prefilter_recall: Interval | None
    prefilter_recall_lower_bound: float | None
    recall_lost_to_prefilter: Interval | None
    deferred: Interval
    llm_calls_per_1000_at_production: float
    cost_nano_per_1000: int
    cost_nano_per_1000_at_production: int
    policy_named_rightly: Interval | None


def cascade_facts(
    loaded: Loaded, predictions: Sequence[Prediction], truth: Bools, llm: Bools, prevalence: float
) -> Cascade:
    """Who decides, what is routed, what the prefilter loses, what it costs; `llm` is what the LLM alone would flag."""
    called = np.array([p.cascade.llm_called for p in predictions])
    deferred = np.array([p.cascade.status != "accepted" for p in predictions])
    names = {step.stage.name for step in loaded.task.steps if isinstance(step.stage, CnnStage)}
    cleared = np.array([p.cascade.stage in names and not p.cascade.held for p in predictions])
    by_rules = _by_rules(predictions)
    seen = int((truth & ~by_rules).sum())
    kept = int((truth & ~by_rules & ~cleared).sum())
    weight, costs = metrics.weights(truth, prevalence), _costs(loaded, predictions)
    named = [p.policy in p.cascade.policies for p, t in zip(predictions, truth, strict=True)
             if t and p.policy is not None and p.cascade.label == loaded.positive]  # fmt: skip
    routed = _at_production(truth, called, prevalence)
    return Cascade(
        decided_by=dict(Counter(p.cascade.stage or "nobody" for p in predictions)),
        routed=_share(called),
        routed_at_production=routed,
        routed_of=_routed_of(predictions, called),
        prefilter_recall=metrics.proportion(kept, seen),
        prefilter_recall_lower_bound=metrics.lower_bound(kept, seen) if seen else None,
        recall_lost_to_prefilter=metrics.proportion(int((truth & cleared & llm).sum()), int(truth.sum())),
        deferred=_share(deferred),
        llm_calls_per_1000_at_production=1000 * routed.value,
        cost_nano_per_1000=round(1000 * float(costs.mean())),
        cost_nano_per_1000_at_production=round(1000 * float((weight * costs).sum() / len(truth))),
        policy_named_rightly=metrics.proportion(sum(named), len(named)),
    )


def routing_curve(
    predictions: Sequence[Prediction], truth: Bools, prevalence: float
) -> list[tuple[float, float, float]]:
    """(threshold, prefilter recall, share routed to the LLM at `prevalence`) over thresholds of the prefilter.

    Rows that a rule decides are never routed; violations among them are not the prefilter's to lose.
    """
    open_rows = np.array([p.cnn is not None for p in predictions]) & ~_by_rules(predictions)
    scores = np.array([p.cnn if p.cnn is not None else 1.0 for p in predictions])
    bad = scores[truth & open_rows]
    if not len(bad):
        return []
    weight = metrics.weights(truth, prevalence)
    unread = np.array([p.cnn is None for p in predictions])
    points = []
    for threshold in np.unique(np.quantile(bad, np.linspace(0, 1, _CURVE_POINTS))):
        routed = (open_rows & (scores >= threshold)) | unread
        share = float((weight * routed).sum() / weight.sum())
        points.append((float(threshold), float((bad >= threshold).mean()), share))
    return points


def _by_rules(predictions: Sequence[Prediction]) -> Bools:
    return np.array([bool(p.rules) and p.cascade.held and not p.cascade.llm_called for p in predictions])


def _at_production(truth: Bools, flags: Bools, prevalence: float) -> Interval:
    def statistic(t: Bools, f: Floats) -> float:
        return float((metrics.weights(t, prevalence) * f).sum() / len(t))

    return metrics.bootstrap(statistic, truth, flags.astype(float), times=metrics.DRAWS)


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
