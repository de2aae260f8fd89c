"""`lab reproduce`: frozen sets, calibration, evaluation and attack suite made anew from the shipped artifacts, and
compared with the task's committed `results/`, or written there.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs, to_builtins

from gateway.lab.agreement import Difference, compare
from gateway.lab.attack import SUITE, attack
from gateway.lab.calibrate_task import CalibrateConfig, Settings, work_out
from gateway.lab.evaluate import METRICS, EvalConfig, evaluate, write_json
from gateway.lab.frozen import RECIPES, UNSEEN, build_frozen
from gateway.lab.rows import LabError
from gateway.lab.systems import load_task

RESULTS = "results"
SETS = (*RECIPES, UNSEEN)
GATED = "eval-10k"
"""The set whose report the gate reads."""
MANIFEST, CALIBRATION, ATTACK = "manifest", "calibration", "attack"


class ReproduceConfig(Struct, frozen=True, kw_only=True):
    """`evaluation` names home, task, models and systems; its `data` is not used and its `out` holds one run per set.

    `sets` None means all: in a comparison, all that are committed.
    """

    evaluation: EvalConfig
    sources: Path
    corpus: Path
    sets: tuple[str, ...] | None = None

    @property
    def task_folder(self) -> Path:
        """Where the results belong."""
        return self.evaluation.home / "tasks" / self.evaluation.task


class Reproduced(Struct, frozen=True):
    """Results by name as they are committed, without the points of plots; and what was left out, and why."""

    results: dict[str, Any]
    skipped: list[str]


class Agreement(Struct, frozen=True):
    """What a comparison found."""

    compared: int
    differences: list[Difference]
    skipped: list[str]


def agreement(config: ReproduceConfig) -> Agreement:
    """Make anew what is committed, and compare. Raises LabError where there is nothing to compare with."""
    committed = {path.stem: _read(path) for path in sorted((config.task_folder / RESULTS).glob("*.json"))}
    if not committed:
        raise LabError(f"{config.task_folder / RESULTS}: there are no committed results; write some with --write")
    made = _made(config, [name for name in config.sets or SETS if name in committed])
    missing = [f"{name}: no result of it is committed" for name in config.sets or SETS if name not in committed]
    found = [
        compare(name, _without(before, config.evaluation.systems), made.results[name])
        for name, before in committed.items()
        if name in made.results
    ]
    return Agreement(
        compared=sum(c.compared for c in found),
        differences=[d for c in found for d in c.differences],
        skipped=[*missing, *made.skipped],
    )


def write_results(config: ReproduceConfig) -> Reproduced:
    """Make anew and commit to the task's folder: `results/`, and metrics.json for the gate. Nothing is written before
    everything is made. Raises LabError.
    """
    made = _made(config, config.sets or SETS)
    (config.task_folder / RESULTS).mkdir(exist_ok=True)
    for name, result in made.results.items():
        write_json(config.task_folder / RESULTS / f"{name}.json", result)
    if GATED in made.results:
        write_json(config.task_folder / METRICS, made.results[GATED])
    return made


def _made(config: ReproduceConfig, sets: Sequence[str]) -> Reproduced:
    evaluation, out = config.evaluation, config.evaluation.out
    manifest = build_frozen(config.sources, config.corpus, out / "data")
    results: dict[str, Any] = {MANIFEST: manifest}
    skipped = [f"{name}: left out, as asked" for name in ("previous", "prompted") if name not in evaluation.systems]
    skipped += [f"{name}: this source is absent" for name in manifest["absent_sources"]]
    for name in sets:
        if not manifest["sets"][name]["violations"]:
            skipped.append(f"{name}: the corpus has no messages for it")
            continue
        data = out / "data" / f"{name}.jsonl.gz"
        results[name] = _plain(evaluate(structs.replace(evaluation, data=data, out=out / name)))
    for name, part in ((ATTACK, _attacked), (CALIBRATION, _calibrated)):
        found = part(config)
        if isinstance(found, str):
            skipped.append(f"{name}: {found}")
        else:
            results[name] = found
    return Reproduced(results, skipped)


def _attacked(config: ReproduceConfig) -> Any:
    """The suite's result, or why there is none."""
    e = config.evaluation
    if not (config.task_folder / SUITE).exists():
        return "the task has no suite"
    return _plain(attack(e.home, e.task, e.out / ATTACK, e.base, e.readings, adapter=e.adapter, threads=e.threads))


def _calibrated(config: ReproduceConfig) -> Any:
    """What calibrating again would write, with the settings that the calibration's file keeps; or why there is none."""
    e = config.evaluation
    chain = load_task(e.home, e.task).chain
    if chain.calibration is None or e.adapter is None:
        return "the task has no calibration of an adapter"
    notes = _read(config.task_folder / chain.calibration)
    settings = notes.get("thresholds", {}).get("settings") if isinstance(notes, Mapping) else None
    if settings is None:
        return f"{chain.calibration} does not say how it was made: it was not written by `lab calibrate`"
    return _plain(work_out(CalibrateConfig(
        home=e.home, task=e.task, sources=config.sources, corpus=config.corpus, base=e.base, adapter=e.adapter,
        readings=e.readings, threads=e.threads, settings=msgspec.convert(settings, Settings),
    )))  # fmt: skip


def _plain(found: Any) -> dict[str, Any]:
    plain: dict[str, Any] = to_builtins(found)
    return {key: value for key, value in plain.items() if key != "curves"}


def _without(committed: Any, systems: Sequence[str]) -> Any:
    """A committed result without the systems that were left out this time."""
    if not isinstance(committed, Mapping) or "systems" not in committed:
        return committed
    left_out = {"previous", "prompted"} - set(systems)
    kept = {name: value for name, value in committed["systems"].items() if name not in left_out}
    lifts = {
        key: {name: value for name, value in committed.get(key, {}).items() if name.split()[-1] not in left_out}
        for key in ("lift", "matched_lift")
    }
    return {**committed, "systems": kept, **lifts}


def stated(results: Mapping[str, Any]) -> Iterator[str]:
    """A line per result: what a reader looks for first."""
    for name, found in results.items():
        if "systems" in found:
            auc = found["systems"]["tuned"]["auc"]
            yield f"{name}: fine-tuned AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})"


def _read(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise LabError(f"{path}: {error}") from error
