"""`lab eval`: read every row with the LLM, let every system judge it, measure, and leave a folder with the report."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.lab import prompted as prompted_llm
from gateway.lab.files import read_file
from gateway.lab.measure import Evaluation, measure
from gateway.lab.metrics import PRODUCTION_PREVALENCE, Interval
from gateway.lab.predictions import FILE as PREDICTIONS
from gateway.lab.predictions import predict, write_predictions
from gateway.lab.previous import read_previous
from gateway.lab.readings import read_all
from gateway.lab.report import write_report
from gateway.lab.rows import LabError, Row, read_rows, rows_hash
from gateway.lab.run_folder import run_folder
from gateway.lab.systems import load_task
from gateway.lab.whole import write_whole

METRICS = "metrics.json"
CONFIG = "config.json"


class EvalConfig(Struct, frozen=True, kw_only=True):
    """One evaluation. `readings` is shared by all runs: rows that a model has read are not read again.

    `adapter` None evaluates the bare base in the LLM stage's place. `systems` may leave out `previous` and `prompted`.
    """

    home: Path
    task: str
    data: Path
    out: Path
    base: Path
    readings: Path
    adapter: Path | None = None
    systems: tuple[str, ...] = ("previous", "prompted")
    prevalence: float = PRODUCTION_PREVALENCE
    threads: int = 1
    learning_curve: Path | None = None


def evaluate(config: EvalConfig) -> Evaluation:
    """Write predictions, metrics and report to `out`, which stays as it was on any error.

    Raises LabError and InvalidConfig.
    """
    loaded = load_task(config.home, config.task)
    rows = read_labelled(config.data)
    curve = _learning_curve(config.learning_curve)
    previous = read_previous(loaded.folder) if "previous" in config.systems else None
    choice = prompted_llm.read(loaded.folder) if "prompted" in config.systems else None
    tuned = read_all(loaded.asked(config.base, config.adapter), rows, config.readings, threads=config.threads)
    base = None
    if choice is not None:
        base = read_all(choice.asked(loaded, config.base), rows, config.readings, threads=config.threads)
    predictions = asyncio.run(predict(loaded, rows, tuned, prompted=base, previous=previous))
    about = {
        "task": config.task,
        "task_fingerprint": loaded.task.fingerprint,
        "data": config.data.name,
        "data_sha256": rows_hash(rows),
        "rows": len(rows),
        "violations": sum(row.label == loaded.positive for row in rows),
        "llm_asked": loaded.asked(config.base, config.adapter).fingerprint(),
        "prompted": None if choice is None else choice.prompt,
        "command": f"gateway lab eval --data {config.data.name}",
    }
    threshold = choice.threshold if choice is not None else None
    found = measure(loaded, predictions, about, prompted_threshold=threshold, prevalence=config.prevalence)
    with run_folder(config.out) as folder:
        write_json(folder / CONFIG, {**about, "prevalence": config.prevalence, "systems": list(config.systems)})
        write_predictions(folder / PREDICTIONS, predictions)
        write_json(folder / METRICS, found)
        write_report(found, folder, curve)
    return found


def read_labelled(path: Path) -> list[Row]:
    """A frozen set, or anyone's labelled file. Raises LabError for what cannot be evaluated."""
    if path.name.endswith(".jsonl.gz"):
        rows = read_rows(path)
        if not rows or len({row.label for row in rows}) < 2:
            raise LabError(f"{path}: {len(rows)} rows; both `clean` and `violation` are needed")
        return rows
    return read_file(path)


def write_json(path: Path, value: Any) -> None:
    """Indented, keys sorted, a newline at the end; whole or not at all."""
    write_whole(path, (json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True) + "\n").encode())


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises LabError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from error


def _learning_curve(path: Path | None) -> list[tuple[int, Interval]]:
    if path is None:
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[tuple[int, Interval]])
    except (OSError, msgspec.MsgspecError) as error:
        raise LabError(f"{path}: {error}") from error
