"""`lab calibrate`: the LLM's Platt scaling and a task's two thresholds, written into its folder with the target met."""

import asyncio
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from msgspec import Struct

from gateway.core.cascade import Finding
from gateway.core.task import CnnStage, RulesStage
from gateway.lab.calibrate import Promise, fit_platt, threshold_for_recall, write_thresholds
from gateway.lab.evaluate import write_json
from gateway.lab.metrics import PRODUCTION_PREVALENCE, best_f1_threshold, weights
from gateway.lab.readings import read_all, row_key
from gateway.lab.rows import (
    SERVICE_SOURCES,
    VIOLATION_SOURCES,
    LabError,
    Row,
    read_corpus,
    read_marketplace_dev,
    read_public,
    rows_hash,
    unit,
)  # fmt: skip
from gateway.lab.systems import Loaded, findings, load_task


class CalibrateConfig(Struct, frozen=True, kw_only=True):
    """`recall` is what the prefilter must keep, by its lower bound; `per_label` bounds the rows of a source and label.

    `accept_above` fixes the LLM's threshold; None takes the one of best F1 of the whole cascade at `prevalence`.
    """

    home: Path
    task: str
    sources: Path
    corpus: Path
    base: Path
    adapter: Path
    readings: Path
    recall: float = 0.95
    prevalence: float = PRODUCTION_PREVALENCE
    accept_above: float | None = None
    per_label: int = 150
    threads: int = 1


class Calibrated(Struct, frozen=True, kw_only=True):
    """What was written."""

    a: float
    b: float
    accept_above: float
    prefilter_below: float
    recall: float
    recall_lower_bound: float
    violations: int


def calibrate(config: CalibrateConfig) -> Calibrated:
    """Fit on calibration rows; choose thresholds on them and the development messages. Raises LabError."""
    loaded = load_task(config.home, config.task)
    prefilter = next((s.stage for s in loaded.task.steps if isinstance(s.stage, CnnStage)), None)
    if prefilter is None or loaded.chain.calibration is None:
        raise LabError(
            f"tasks/{config.task}: calibration needs a cnn stage, and a `calibration` file at the chain stage"
        )
    fitted = _rows(config)
    rows = [*fitted, *read_marketplace_dev(config.sources)]
    asked = loaded.asked(config.base, config.adapter)
    readings = read_all(asked, rows, config.readings, threads=config.threads)
    margins = np.array([readings[row_key(row)].margin(loaded.positive) for row in rows])
    truth = np.array([row.label == loaded.positive for row in rows])
    part = slice(0, len(fitted))
    platt = fit_platt(margins[part].tolist(), truth[part].tolist(), weights(truth[part], config.prevalence).tolist())
    cnn, by_rules = asyncio.run(_cheap(loaded, rows))
    promise = threshold_for_recall(cnn[truth & ~by_rules & np.isfinite(cnn)].tolist(), config.recall)
    score = 1 / (1 + np.exp(-(platt.a * margins + platt.b)))
    reached = np.where(by_rules, 2.0, np.where(cnn >= promise.threshold, score, -1.0))
    above = config.accept_above or min(best_f1_threshold(truth, reached, config.prevalence), 1.0)
    platt_file = {"a": platt.a, "b": platt.b, "fitted_at_prevalence": config.prevalence, "rows_sha256": rows_hash(rows)}
    _write(config, loaded, prefilter.name, promise, above, platt_file)
    return Calibrated(
        a=platt.a,
        b=platt.b,
        accept_above=above,
        prefilter_below=promise.threshold,
        recall=promise.recall,
        recall_lower_bound=promise.lower_bound,
        violations=promise.positives,
    )


def _write(
    config: CalibrateConfig, loaded: Loaded, prefilter: str, promise: Promise, above: float, platt: dict[str, object]
) -> None:
    assert loaded.chain.calibration is not None, "calibrate has checked it"
    adapter = hashlib.sha256((config.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    write_json(loaded.folder / loaded.chain.calibration, {"method": "platt", "adapter_sha256": adapter, **platt})
    task_toml = loaded.folder / "task.toml"
    met = (
        f"recall {promise.recall:.3f} of {promise.positives}, lower bound {promise.lower_bound:.3f} >= {config.recall}"
    )
    write_thresholds(task_toml, prefilter, {"accept_below": promise.threshold}, met)
    note = f"best F1 at a prevalence of {config.prevalence}" if config.accept_above is None else "chosen by hand"
    write_thresholds(task_toml, loaded.chain.name, {"accept_above": above, "accept_below": above}, note)


def _rows(config: CalibrateConfig) -> list[Row]:
    """Calibration rows, at most so many of each source and label."""
    public, _ = read_public(config.sources, (*VIOLATION_SOURCES, *SERVICE_SOURCES))
    pools: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted((*public, *read_corpus(config.corpus)), key=lambda r: unit(r.id, "calibrate")):
        if row.split == "calibration":
            pools[row.source, row.label].append(row)
    return [row for _, pool in sorted(pools.items()) for row in pool[: config.per_label]]


async def _cheap(loaded: Loaded, rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The prefilter's score of each row (infinite where it has none: such rows pass on), and whether a rule decided."""
    scores, hits = np.full(len(rows), np.inf), np.zeros(len(rows), bool)
    for step in loaded.task.steps:
        if not isinstance(step.stage, RulesStage | CnnStage):
            continue
        for i, found in enumerate(await findings(step.runner, rows, step.stage.name)):
            if isinstance(found, Finding) and found.score is not None:
                scores[i] = found.score
            hits[i] |= isinstance(found, Finding) and bool(found.matched)
    return scores, hits
