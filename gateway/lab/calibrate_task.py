"""`lab calibrate`: the LLM's Platt scaling and a task's two thresholds, written into its folder with the target met.

Platt is fitted on rows that serve nothing else; both thresholds are chosen on the other calibration rows and on the
marketplace's development messages. How many rows each had, and their hashes, stand in the calibration's file.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from gateway.core.cascade import Finding
from gateway.core.task import CnnStage, RulesStage
from gateway.lab.calibrate import (
    PlattFit,
    Promise,
    fit_platt,
    four_digits,
    threshold_for_flags,
    threshold_for_recall,
    write_thresholds,
)
from gateway.lab.evaluate import file_sha256, write_json
from gateway.lab.metrics import (
    PRODUCTION_PREVALENCE,
    Bools,
    Floats,
    Interval,
    best_f1_threshold,
    checked,
    proportion,
    weights,
)
from gateway.lab.readings import read_all, row_key
from gateway.lab.rows import (
    CORPUS,
    MARKETPLACE_DEV,
    LabError,
    Row,
    Split,
    read_corpus,
    read_marketplace_dev,
    read_public,
    rows_hash,
    training_sources,
    unit,
)
from gateway.lab.systems import Loaded, findings, load_task


class Settings(Struct, frozen=True, kw_only=True):
    """`recall` is what the prefilter must keep, by its lower bound; `per_label` bounds the rows of a source and label.

    The LLM's threshold is `accept_above` if that is given; or the lowest at which the cascade flags at most the share
    `hard_negative_fp` of the marketplace's hard negatives; or that of the cascade's best F1 at `prevalence`.
    """

    recall: float = 0.95
    prevalence: float = PRODUCTION_PREVALENCE
    accept_above: float | None = None
    hard_negative_fp: float | None = None
    per_label: int = 150


class CalibrateConfig(Struct, frozen=True, kw_only=True):
    """Where everything is, and how to choose."""

    home: Path
    task: str
    sources: Path
    corpus: Path
    base: Path
    adapter: Path
    readings: Path
    settings: Settings = Settings()
    threads: int = 1


class AtThreshold(Struct, frozen=True, kw_only=True):
    """What a system does to the marketplace rows of one source at the chosen thresholds."""

    recall: Interval | None
    hard_negatives_flagged: Interval | None
    violations: int
    hard_negatives: int


class Calibrated(Struct, frozen=True, kw_only=True):
    """What is written. `marketplace` is by source and system (`llm` alone, `cascade`), on the rows of the choice."""

    settings: Settings
    a: float
    b: float
    platt_rows: int
    platt_sha256: str
    accept_above: float
    chosen: str
    prefilter_below: float
    recall: float
    recall_lower_bound: float
    violations: int
    threshold_rows: int
    threshold_sha256: str
    marketplace: dict[str, dict[str, AtThreshold]]


class _Scored(NamedTuple):
    """Rows with their truth, LLM scores, prefilter scores (infinite: passes on) and whether a rule decided."""

    rows: Sequence[Row]
    truth: Bools
    llm: Floats
    cnn: Floats
    by_rules: Bools

    def reached(self, prefilter_below: float) -> Floats:
        """The score by which the cascade flags a row: 2 for a rule, -1 for what the prefilter clears."""
        return np.where(self.by_rules, 2.0, np.where(self.cnn >= prefilter_below, self.llm, -1.0))

    def hard_negatives(self) -> Bools:
        """The marketplace's clean rows that mirror a violation."""
        mirrors: Bools = np.array([r.difficulty == "hard_negative" for r in self.rows], bool)
        return ~self.truth & mirrors


def calibrate(config: CalibrateConfig) -> Calibrated:
    """`work_out`, and write it. Nothing is written where that is impossible: raises LabError."""
    found = work_out(config)
    _write(config, load_task(config.home, config.task), found)
    return found


def work_out(config: CalibrateConfig) -> Calibrated:
    """Fit and choose, and write nothing. Raises LabError."""
    settings = config.settings
    if settings.accept_above is not None and settings.hard_negative_fp is not None:
        raise LabError("the LLM's threshold is either given or chosen by hard negatives: not both")
    loaded = load_task(config.home, config.task)
    if prefilter_name(loaded) is None or loaded.chain.calibration is None:
        raise LabError(
            f"tasks/{config.task}: calibration needs a cnn stage, and a `calibration` file at the chain stage"
        )
    fitted = _rows(config, "platt")
    judged = [*_rows(config, "calibration"), *read_marketplace_dev(config.sources)]
    margins = _margins(config, loaded, [*fitted, *judged])
    platt = _platt(settings, loaded, fitted, margins[: len(fitted)])
    scored = _scored(loaded, judged, 1 / (1 + np.exp(-(platt.a * margins[len(fitted) :] + platt.b))))
    promise = _promise(scored, settings.recall)
    above, chosen = _accept_above(settings, scored, scored.reached(promise.threshold))
    return Calibrated(
        settings=settings,
        a=platt.a,
        b=platt.b,
        platt_rows=len(fitted),
        platt_sha256=rows_hash(fitted),
        accept_above=above,
        chosen=chosen,
        prefilter_below=promise.threshold,
        recall=promise.recall,
        recall_lower_bound=promise.lower_bound,
        violations=promise.positives,
        threshold_rows=len(judged),
        threshold_sha256=rows_hash(judged),
        marketplace=_on_marketplace(scored, promise.threshold, above),
    )


def prefilter_name(loaded: Loaded) -> str | None:
    """The name of the task's cnn stage, if it has one."""
    return next((step.stage.name for step in loaded.task.steps if isinstance(step.stage, CnnStage)), None)


def _rows(config: CalibrateConfig, split: Split) -> list[Row]:
    """Rows of a split, at most so many of each source and label."""
    public, _ = read_public(config.sources, training_sources(config.sources))
    pools: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted((*public, *read_corpus(config.corpus)), key=lambda r: unit(r.id, "calibrate")):
        if row.split == split:
            pools[row.source, row.label].append(row)
    return [row for _, pool in sorted(pools.items()) for row in pool[: config.settings.per_label]]


def _margins(config: CalibrateConfig, loaded: Loaded, rows: Sequence[Row]) -> Floats:
    readings = read_all(loaded.asked(config.base, config.adapter), rows, config.readings, threads=config.threads)
    return np.array([readings[row_key(row)].margin(loaded.positive) for row in rows])


def _platt(settings: Settings, loaded: Loaded, rows: Sequence[Row], margins: Floats) -> PlattFit:
    truth, margins = checked([row.label == loaded.positive for row in rows], margins)
    return fit_platt(margins.tolist(), truth.tolist(), weights(truth, settings.prevalence).tolist())


def _scored(loaded: Loaded, rows: Sequence[Row], llm: Floats) -> _Scored:
    truth = np.array([row.label == loaded.positive for row in rows], bool)
    return _Scored(rows, truth, llm, *asyncio.run(cheap_scores(loaded, rows)))


async def cheap_scores(loaded: Loaded, rows: Sequence[Row]) -> tuple[Floats, Bools]:
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


def _promise(scored: _Scored, recall: float) -> Promise:
    open_violations = scored.truth & ~scored.by_rules & np.isfinite(scored.cnn)
    return threshold_for_recall(scored.cnn[open_violations].tolist(), recall)


def _accept_above(settings: Settings, scored: _Scored, reached: Floats) -> tuple[float, str]:
    """The LLM's threshold, and how it was chosen."""
    if settings.accept_above is not None:
        return settings.accept_above, "chosen by hand"
    if (most := settings.hard_negative_fp) is not None:
        hard = reached[scored.hard_negatives()]
        return threshold_for_flags(hard.tolist(), most), f"at most {most:.1%} of {len(hard)} hard negatives are flagged"
    best = best_f1_threshold(scored.truth, reached, settings.prevalence)
    return four_digits(float(np.clip(best, 0.0, 1.0))), f"best F1 at a prevalence of {settings.prevalence}"


def _on_marketplace(scored: _Scored, prefilter_below: float, above: float) -> dict[str, dict[str, AtThreshold]]:
    flags = {"llm": scored.llm >= above, "cascade": scored.reached(prefilter_below) >= above}
    sources = np.array([row.source for row in scored.rows])
    return {
        source: {name: _at(scored, sources == source, flagged) for name, flagged in flags.items()}
        for source in (CORPUS, MARKETPLACE_DEV)
    }


def _at(scored: _Scored, of_source: Bools, flagged: Bools) -> AtThreshold:
    bad, hard = of_source & scored.truth, of_source & scored.hard_negatives()
    return AtThreshold(
        recall=proportion(int((bad & flagged).sum()), int(bad.sum())),
        hard_negatives_flagged=proportion(int((hard & flagged).sum()), int(hard.sum())),
        violations=int(bad.sum()),
        hard_negatives=int(hard.sum()),
    )


def _write(config: CalibrateConfig, loaded: Loaded, found: Calibrated) -> None:
    prefilter, calibration = prefilter_name(loaded), loaded.chain.calibration
    assert prefilter is not None, "work_out has checked it"
    assert calibration is not None, "work_out has checked it"
    weights_file = config.adapter / "adapter_model.safetensors"
    notes = {
        "method": "platt", "a": found.a, "b": found.b, "adapter_sha256": file_sha256(weights_file),
        "fitted_at_prevalence": found.settings.prevalence, "rows": found.platt_rows, "rows_sha256": found.platt_sha256,
        "thresholds": {
            "settings": found.settings, "chosen": found.chosen, "rows": found.threshold_rows,
            "rows_sha256": found.threshold_sha256, "marketplace": found.marketplace,
        },
    }  # fmt: skip
    met = f"recall {found.recall:.3f} of {found.violations}, lower bound {found.recall_lower_bound:.3f}"
    both = {"accept_above": found.accept_above, "accept_below": found.accept_above}
    write_json(loaded.folder / calibration, notes)
    task_toml = loaded.folder / "task.toml"
    target = f"{met} >= {found.settings.recall}"
    write_thresholds(task_toml, prefilter, {"accept_below": found.prefilter_below}, target)
    write_thresholds(task_toml, loaded.chain.name, both, found.chosen)
