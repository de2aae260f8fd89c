"""Thresholds from what people decided: an export's rows, each weighted by how much of the stream it stands for.

`refit` works out another calibration and other thresholds and says what both, those that serve and the new ones, do to
the stream; nothing is written. `apply` writes them. Half of the rows, by their group, fit the calibration; the
thresholds are chosen, and all effects measured, on the other half. Rows that stand in a frozen test set are refused.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec import Struct, to_builtins
from scipy.stats import beta  # type: ignore[import-untyped]

from gateway.core.estimates import Estimate, proportion
from gateway.core.task import CnnStage
from gateway.lab.calibrate import fit_platt, four_digits, write_thresholds
from gateway.lab.calibrate_task import cheap_scores, prefilter_name
from gateway.lab.evaluate import write_json
from gateway.lab.files import read_weighted
from gateway.lab.metrics import CONFIDENCE, Bools, Floats, checked
from gateway.lab.readings import Reading, read_all, row_key
from gateway.lab.rows import LabError, Row, read_corpus, rows_hash, unit
from gateway.lab.systems import Loaded, load_task

_TESTED = ("test", "unseen", "reserve")


class RefitConfig(Struct, frozen=True, kw_only=True):
    """`labels` is a file of `gateway reviews export`; `recall` is what the prefilter must keep, by its lower bound.

    The LLM's threshold is `accept_above`, or that of the cascade's best F1 over the stream.
    """

    home: Path
    task: str
    labels: Path
    corpus: Path
    base: Path
    adapter: Path
    readings: Path
    recall: float = 0.95
    accept_above: float | None = None
    threads: int = 1


class Thresholds(Struct, frozen=True):
    """What decides: the prefilter clears below the one, the LLM flags from the other on."""

    prefilter_below: float
    accept_above: float


class Effect(Struct, frozen=True, kw_only=True):
    """What thresholds do to the stream that the rows stand for, with 95 % intervals on the effective sample size."""

    thresholds: Thresholds
    routed: Estimate | None
    flagged: Estimate | None
    recall: Estimate | None
    precision: Estimate | None
    llm_cost_nano_per_1000: int


class Refit(Struct, frozen=True, kw_only=True):
    """The fit and both effects. `effective_rows` is what the measured half is worth (Kish)."""

    a: float
    b: float
    prevalence: float
    fitted_rows: int
    fitted_sha256: str
    measured_rows: int
    measured_sha256: str
    effective_rows: float
    recall_lower_bound: float
    now: Effect
    then: Effect


class _Half(Struct, frozen=True):
    """Rows with truth, weights, margins of the LLM, scores of the prefilter (infinite: passes on), rule hits, costs."""

    rows: Sequence[Row]
    truth: Bools
    weights: Floats
    margins: Floats
    cnn: Floats
    ruled: Bools
    costs: Floats

    def only(self, some: Bools) -> "_Half":
        rows = [row for row, kept in zip(self.rows, some, strict=True) if kept]
        truth, ruled = self.truth[some], self.ruled[some]
        weights, margins, cnn, costs = (array[some] for array in (self.weights, self.margins, self.cnn, self.costs))
        return _Half(rows, truth, weights, margins, cnn, ruled, costs)


def refit(config: RefitConfig) -> Refit:
    """Work everything out, and write nothing. Raises LabError."""
    loaded = load_task(config.home, config.task)
    if prefilter_name(loaded) is None or loaded.chain.calibration is None:
        raise LabError(f"tasks/{config.task}: this needs a cnn stage, and a `calibration` file at the chain stage")
    every = _read(config, loaded)
    first = np.array([unit(row.group, "refit") < 0.5 for row in every.rows], bool)
    fitted, measured = every.only(first), every.only(~first)
    checked(measured.truth, measured.margins)
    fit = fit_platt(fitted.margins.tolist(), fitted.truth.tolist(), fitted.weights.tolist())
    new = 1 / (1 + np.exp(-(fit.a * measured.margins + fit.b)))
    below, bound = _prefilter_below(measured, config.recall)
    above = config.accept_above if config.accept_above is not None else _best_f1(measured, new, below)
    return Refit(
        a=fit.a,
        b=fit.b,
        prevalence=fit.share,
        fitted_rows=len(fitted.rows),
        fitted_sha256=rows_hash(fitted.rows),
        measured_rows=len(measured.rows),
        measured_sha256=rows_hash(measured.rows),
        effective_rows=_effective(measured.weights),
        recall_lower_bound=bound,
        now=_effect(measured, _serving(loaded), loaded.platt().a * measured.margins + loaded.platt().b),
        then=_effect(measured, Thresholds(below, above), fit.a * measured.margins + fit.b),
    )


def apply(config: RefitConfig) -> Refit:
    """`refit`, written into the task's folder with where it comes from. Raises LabError, and then writes nothing."""
    found, loaded = refit(config), load_task(config.home, config.task)
    assert loaded.chain.calibration is not None, "refit has checked it"
    prefilter = prefilter_name(loaded)
    assert prefilter is not None, "refit has checked it"
    notes = {"method": "platt", "a": found.a, "b": found.b, "from_reviews": to_builtins(found)}
    write_json(loaded.folder / loaded.chain.calibration, notes)
    task_toml, new = loaded.folder / "task.toml", found.then.thresholds
    met = f"from reviews: recall's lower bound {found.recall_lower_bound:.3f} >= {config.recall}"
    write_thresholds(task_toml, prefilter, {"accept_below": new.prefilter_below}, met)
    chosen = (
        "from reviews: chosen by hand" if config.accept_above is not None else "from reviews: best F1 of the stream"
    )
    both = {"accept_above": new.accept_above, "accept_below": new.accept_above}
    write_thresholds(task_toml, loaded.chain.name, both, chosen)
    return found


def _read(config: RefitConfig, loaded: Loaded) -> _Half:
    rows, weights = read_weighted(config.labels, "calibration")
    tested = {_folded(row.text) for row in read_corpus(config.corpus) if row.split in _TESTED}
    if overlap := sum(_folded(row.text) in tested for row in rows):
        raise LabError(
            f"{config.labels}: {overlap} rows are messages of a frozen test set; thresholds are not chosen on it"
        )
    asked = loaded.asked(config.base, config.adapter)
    readings = read_all(asked, rows, config.readings, threads=config.threads)
    of_rows = [readings[row_key(row)] for row in rows]
    cnn, ruled = asyncio.run(cheap_scores(loaded, rows))
    return _Half(
        rows=rows,
        truth=np.array([row.label == loaded.positive for row in rows], bool),
        weights=np.array(weights),
        margins=np.array([reading.margin(loaded.positive) for reading in of_rows]),
        cnn=cnn,
        ruled=ruled,
        costs=_costs(loaded, of_rows),
    )


def _costs(loaded: Loaded, readings: Sequence[Reading]) -> Floats:
    """Of asking the LLM about each, at today's price."""
    tariff, now = loaded.model.tariff, datetime.now(UTC)
    written = 2 if loaded.chain.policies else 1
    return np.array([tariff.cost_nano(reading.input_tokens, written, now) for reading in readings], float)


def _serving(loaded: Loaded) -> Thresholds:
    """What the task declares now; a threshold that is not declared decides nothing."""
    below = next(step.stage.accept_below for step in loaded.task.steps if isinstance(step.stage, CnnStage))
    return Thresholds(below or 0.0, loaded.chain.accept_above if loaded.chain.accept_above is not None else 1.0)


def _effect(half: _Half, thresholds: Thresholds, logits: Floats) -> Effect:
    routed = ~half.ruled & (half.cnn >= thresholds.prefilter_below)
    flagged = half.ruled | (routed & (1 / (1 + np.exp(-logits)) >= thresholds.accept_above))
    spent = float((half.weights * half.costs * routed).sum() / half.weights.sum())
    return Effect(
        thresholds=thresholds,
        routed=_share(routed, half.weights),
        flagged=_share(flagged, half.weights),
        recall=_share(flagged[half.truth], half.weights[half.truth]),
        precision=_share(half.truth[flagged], half.weights[flagged]),
        llm_cost_nano_per_1000=round(1000 * spent),
    )


def _prefilter_below(half: _Half, target: float) -> tuple[float, float]:
    """The highest threshold, of four digits, that keeps so much of the weight of violations that the lower bound of
    recall (one-sided, 95 %, Clopper and Pearson's on the effective number) is `target`; and that bound.
    """
    open_ = half.truth & ~half.ruled & np.isfinite(half.cnn)
    scores, weights = half.cnn[open_], half.weights[open_]
    best = None
    for score in np.unique(scores):
        threshold = four_digits(float(score))
        bound = _lower_bound(scores >= threshold, weights)
        if bound < target:
            break
        best = threshold, bound
    if best is None:
        raise LabError(f"{len(scores)} weighted violations cannot prove a recall of {target}, even if none is missed")
    return best


def _lower_bound(kept: Bools, weights: Floats) -> float:
    of = _effective(weights)
    hits = of * float(weights[kept].sum() / weights.sum())
    return float(beta.ppf(1 - CONFIDENCE, hits, of - hits + 1)) if hits else 0.0


def _best_f1(half: _Half, llm: Floats, below: float) -> float:
    """The LLM's threshold at which the cascade's F1 over the stream is best."""
    reached = np.where(half.ruled, 2.0, np.where(half.cnn >= below, llm, -1.0))
    order = np.argsort(-reached, kind="stable")
    weights, bad = half.weights[order], (half.weights * half.truth)[order]
    f1 = 2 * np.cumsum(bad) / (np.cumsum(weights) + bad.sum())
    last_of_tie = np.append(np.diff(reached[order]) != 0, True)
    best = int(np.argmax(np.where(last_of_tie, f1, -1.0)))
    return four_digits(float(np.clip(reached[order][best], 1e-6, 1.0)))


def _share(hits: Bools, weights: Floats) -> Estimate | None:
    if not len(weights):
        return None
    of = _effective(weights)
    return proportion(of * float(weights[hits].sum() / weights.sum()), of)


def _effective(weights: Floats) -> float:
    """Kish's effective sample size."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
