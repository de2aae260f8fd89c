"""Freezing the previous system: its CNN, trained the ordinary way, and the threshold that its owner would have chosen.

The same training rows as the prefilter's, every one once an epoch: no disguises, no joined messages, no class or source
drawn more often than it comes, no policy labels, no vectors from a language model. The threshold is the one of best F1
on the calibration rows, service talk included, weighted to production prevalence, counting what the rules flag already.
"""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tomlkit

from gateway.lab import metrics
from gateway.lab.cnn_mix import CnnMixConfig
from gateway.lab.previous import FILE, read_previous
from gateway.lab.rows import SERVICE_SOURCES, VIOLATION_SOURCES, Row, read_corpus, read_public
from gateway.lab.train_cnn import WEIGHTS, CnnConfig, train_cnn
from gateway.lab.whole import write_whole

_SEED = 20240613
_ALL = 1 << 20
_UNDECIDED = 1.0


def plain_config(sources: Path | None, corpus: Path, out: Path, *, epochs: int = 3, seed: int = _SEED) -> CnnConfig:
    """A CNN of the usual size, without anything that this project adds."""
    mix = CnnMixConfig(
        per_label=_ALL, service=_ALL, corpus_passes=1, plain_passes=0, disguised=0.0, joined=0.0, pool_per_label=4500
    )
    return CnnConfig(
        sources=str(sources) if sources is not None else None, corpus=str(corpus), out=str(out), epochs=epochs,
        learning_rate=2e-3, table_rate=6e-4, dropout_features=0.3, averaging=0.0, kindred_words=0.0,
        policy_weight=0.0, lexicon=8000, buckets=4096, shape={"word_dim": 48, "word_filters": 64}, spelled_words=0.0,
        seed=seed, mix=mix,
    )  # fmt: skip


def freeze_previous(config: CnnConfig, folder: Path) -> float:
    """Train, put the weights into `folder` (which holds rules.toml and system.toml), and set the threshold there."""
    run = train_cnn(config)
    for suffix in (".safetensors", ".json"):
        shutil.copyfile((run / WEIGHTS).with_suffix(suffix), folder / f"cnn{suffix}")
    _set_threshold(folder, _UNDECIDED)
    rows = validation_rows(Path(config.sources) if config.sources else None, Path(config.corpus))
    threshold = best_threshold(folder, rows)
    _set_threshold(folder, threshold)
    return threshold


def validation_rows(sources: Path | None, corpus: Path) -> list[Row]:
    """The calibration rows of all sources: trained on by nobody."""
    public = read_public(sources, (*VIOLATION_SOURCES, *SERVICE_SOURCES))[0] if sources is not None else []
    return [row for row in (*public, *read_corpus(corpus)) if row.split == "calibration"]


def best_threshold(folder: Path, rows: Sequence[Row]) -> float:
    """The CNN score of best F1 for rules OR CNN, rounded to four digits."""
    said = asyncio.run(read_previous(folder.parent).judge(rows))
    truth = np.array([row.label == "violation" for row in rows])
    scores = np.array([1.0 if s.rules else s.score for s in said])
    return float(f"{min(metrics.best_f1_threshold(truth, scores, metrics.PRODUCTION_PREVALENCE), _UNDECIDED):.4g}")


def _set_threshold(folder: Path, threshold: float) -> None:
    path = folder / FILE
    document = tomlkit.parse(path.read_text("utf-8"))
    for stage in document["stage"]:
        if stage["kind"] == "cnn":
            stage["accept_above"] = threshold
    write_whole(path, tomlkit.dumps(document).encode())
