"""The prompted base LLM: the best of several prompts, and its threshold, chosen on validation rows only."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, structs

from gateway.lab import metrics
from gateway.lab.readings import Asked, read_all, row_key
from gateway.lab.rows import (
    VIOLATION_SOURCES,
    LabError,
    Row,
    read_corpus,
    read_marketplace_dev,
    read_public,
    rows_hash,
    unit,
)  # fmt: skip
from gateway.lab.systems import Loaded
from gateway.lab.whole import write_whole

FILE = "prompted.json"
CANDIDATES: Mapping[str, Mapping[str, str]] = {
    "prompted.v1": {"clean": "A", "violation": "B"},
    "prompted.v2": {"clean": "No", "violation": "Yes"},
    "prompted.v3": {"clean": "A", "violation": "B"},
}
"""Prompts in the task's own prompt folder, with the tokens that they ask for."""


class Prompted(Struct, frozen=True, kw_only=True):
    """The choice: a prompt, its label tokens, and the margin from which on a row is flagged (best F1
    on validation rows weighted to production prevalence)."""

    prompt: str
    labels: dict[str, str]
    threshold: float
    validation_auc: dict[str, metrics.Interval]
    validation_rows: int
    validation_sha256: str

    def asked(self, loaded: Loaded, base: Path) -> Asked:
        """The question that this prompt puts to the bare base model."""
        return _asked(loaded, base, self.prompt, self.labels)


def choose(
    loaded: Loaded,
    base: Path,
    rows: Sequence[Row],
    cache: Path,
    *,
    candidates: Mapping[str, Mapping[str, str]] = CANDIDATES,
    threads: int = 1,
) -> Prompted:
    """Read the validation rows with every candidate; the best macro mean of AUCs within sources wins."""
    best: tuple[float, str, metrics.Floats] | None = None
    truth = np.array([row.label == loaded.positive for row in rows])
    found: dict[str, metrics.Interval] = {}
    for name, labels in candidates.items():
        prompt = f"{loaded.task.name}/{name}"
        readings = read_all(_asked(loaded, base, prompt, labels), rows, cache, threads=threads)
        margins = np.array([readings[row_key(row)].margin(loaded.positive) for row in rows])
        found[prompt] = metrics.macro_auc(by_source(rows, truth, margins))
        if best is None or found[prompt].value > best[0]:
            best = found[prompt].value, name, margins
    assert best is not None, "there are candidates"
    return Prompted(
        prompt=f"{loaded.task.name}/{best[1]}",
        labels=dict(candidates[best[1]]),
        threshold=round(metrics.best_f1_threshold(truth, best[2], metrics.PRODUCTION_PREVALENCE), 5),
        validation_auc=found,
        validation_rows=len(rows),
        validation_sha256=rows_hash(rows),
    )


def validation_rows(sources: Path, corpus: Path, per_label: int = 40) -> list[Row]:
    """Up to so many rows of each label and source, of the calibration split and the marketplace's development set."""
    public, _ = read_public(sources, VIOLATION_SOURCES)
    pools: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in (*public, *read_corpus(corpus), *read_marketplace_dev(sources)):
        if row.split in ("calibration", "validation"):
            pools[row.source, row.label].append(row)
    ordered = (sorted(pool, key=lambda r: unit(r.id, "prompted")) for _, pool in sorted(pools.items()))
    return [row for pool in ordered for row in pool[:per_label]]


def by_source(
    rows: Sequence[Row], truth: metrics.Bools, scores: metrics.Floats
) -> list[tuple[metrics.Bools, metrics.Floats]]:
    """Labels and scores of each source that has both labels."""
    sources = np.array([row.source for row in rows])
    parts = [(truth[sources == name], scores[sources == name]) for name in sorted(set(sources))]
    return [(t, s) for t, s in parts if t.any() and not t.all()]


def write(choice: Prompted, folder: Path) -> Path:
    """Keep the choice in the task's folder."""
    path = folder / FILE
    write_whole(path, (json.dumps(msgspec.to_builtins(choice), indent=2, sort_keys=True) + "\n").encode())
    return path


def read(folder: Path) -> Prompted:
    """The choice that `write` kept. Raises LabError."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Prompted)
    except (OSError, msgspec.MsgspecError) as error:
        raise LabError(f"{path}: {error}") from error


def _asked(loaded: Loaded, base: Path, prompt: str, labels: Mapping[str, str]) -> Asked:
    return structs.replace(loaded.asked(base, None, prompt), labels=dict(labels), policies={})
