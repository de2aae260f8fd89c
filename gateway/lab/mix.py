"""The training mix of the moderation model: what is sampled from where, how often, and in which disguise.

Every source of violations supplies as many clean rows, so that the source does not give the label away.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.lab.augment import disguise
from gateway.lab.duplicates import near_duplicate_groups
from gateway.lab.rows import (
    CORPUS,
    SERVICE_SOURCES,
    VIOLATION_SOURCES,
    Label,
    LabError,
    Row,
    read_corpus,
    read_marketplace_dev,
    read_public,
    rows_hash,
    training_sources,
    unit,
)

_PER_LABEL: Mapping[str, int] = {
    "davidson2017": 700, "edos": 1500, "convabuse": 400, "uci_sms_spam": 500, "youtube_spam": 450, "spamassassin": 350,
}  # fmt: skip
_SERVICE: Mapping[str, int] = {"sgd_services_homes": 900, "multidogo": 700, "banking77": 450, "nlupp": 300}


class MixConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows of each label to draw from a source (drawn again, in another disguise, where the source has fewer);
    `further_per_label` is for sources of one's own that `per_label` does not name.

    `skip` passes over so many rows of each label of a source before drawing, and comes round to them at the end: a
    second round of training sees other rows than the first if it skips what the first has drawn.
    """

    per_label: dict[str, int] = msgspec.field(default_factory=lambda: dict(_PER_LABEL))
    service: dict[str, int] = msgspec.field(default_factory=lambda: dict(_SERVICE))
    further_per_label: int = 1000
    skip: dict[str, int] = msgspec.field(default_factory=dict)
    corpus_passes: int = 3
    disguised_corpus: float = 0.40
    disguised_public: float = 0.12
    max_characters: int = 700
    validation_per_label: int = 24
    validation_marketplace: int = 120
    seed: int = 20240611


class Mix(NamedTuple):
    """What `tune` reads. `absent` names the public sources that were not there."""

    train: list[Row]
    validation: list[Row]
    absent: list[str]
    data_hash: str

    def counts(self) -> dict[str, int]:
        """Rows seen per source and label."""
        return dict(sorted(Counter(f"{r.source}/{r.label}" for r in self.train).items()))


def read_mix(path: Path | None, seed: int) -> MixConfig:
    """The settings of a TOML or JSON file; those that it leaves out keep their defaults, and `seed` is the one given.

    Raises LabError naming the key that is unknown or wrong.
    """
    if path is None:
        return MixConfig(seed=seed)
    decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    try:
        said = msgspec.convert(decode(path.read_bytes()), dict[str, Any])
        return msgspec.convert({"seed": seed, **said}, MixConfig)
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: {error}") from error


def moderation_mix(sources: Path, corpus: Path, config: MixConfig) -> Mix:
    """Read, keep apart from the test rows, sample and disguise. The same files and seed give the same rows."""
    rows, absent = read_public(sources, training_sources(sources))
    own = read_corpus(corpus)
    dev = read_marketplace_dev(sources)
    # A reserve keeps clear of the training rows by itself: it may grow without changing what was trained on.
    held_out = [*(r for r in [*rows, *own] if r.split not in ("train", "reserve")), *dev]
    trained = drop_twins_of_held_out([*_candidates(rows, config), *(r for r in own if r.split == "train")], held_out)
    train = [*_public_part(trained, config), *_corpus_part(trained, config)]
    random.Random(config.seed).shuffle(train)
    calibration = [r for r in [*rows, *own] if r.split == "calibration"]
    validation = _validation(calibration, dev, config)
    return Mix([_short(r, config) for r in train], [_short(r, config) for r in validation], absent, rows_hash(trained))


def drop_twins_of_held_out(train: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
    """The training rows that have no near-duplicate among the held-out ones, and one of each group of twins."""
    groups = near_duplicate_groups([r.text for r in [*held_out, *train]])
    seen = set(groups[: len(held_out)])
    kept = []
    for row, group in zip(train, groups[len(held_out) :], strict=True):
        if group not in seen:
            seen.add(group)
            kept.append(row)
    return kept


def _candidates(rows: Sequence[Row], config: MixConfig) -> list[Row]:
    """More than enough training rows of each source and label, so that duplicates are sought among few."""
    pools = _pools(r for r in rows if r.split == "train")
    return [
        r
        for (source, label), pool in sorted(pools.items())
        if (wanted := _wanted(source, label, config))
        for r in _from(_ordered(pool), config.skip.get(source, 0))[: wanted * 3 // 2 + 9]
    ]


def _wanted(source: str, label: Label, config: MixConfig) -> int:
    """Rows of this label that a source is to give."""
    if source in SERVICE_SOURCES:
        return config.service.get(source, 0) if label == "clean" else 0
    return config.per_label.get(source, 0 if source in VIOLATION_SOURCES else config.further_per_label)


def _public_part(trained: Sequence[Row], config: MixConfig) -> list[Row]:
    pools = _pools(r for r in trained if r.source != CORPUS)
    part: list[Row] = []
    for (source, label), pool in sorted(pools.items()):
        # A small class is drawn at most twice: beyond that the model learns the rows by heart.
        part += (pool * 2)[: min(_wanted(source, label, config), 2 * len(pool))]
    return _disguised(part, config.disguised_public, config.seed + 1)


def _corpus_part(trained: Sequence[Row], config: MixConfig) -> list[Row]:
    own = [r for r in trained if r.source == CORPUS]
    later = _disguised(own * (config.corpus_passes - 1), config.disguised_corpus, config.seed + 2)
    return [*own, *later]


def _disguised(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    rng = random.Random(seed)
    return [msgspec.structs.replace(r, text=disguise(r.text, rng)) if rng.random() < share else r for r in rows]


def _validation(calibration: Sequence[Row], dev: Sequence[Row], config: MixConfig) -> list[Row]:
    """A few balanced rows of each source: enough to see a run go wrong, small enough to score every few minutes."""
    chosen: list[Row] = []
    for (source, _), pool in sorted(_pools([*calibration, *dev]).items()):
        if source in VIOLATION_SOURCES:
            chosen += _ordered(pool)[: config.validation_per_label]
        elif source not in SERVICE_SOURCES:
            chosen += _ordered(pool)[: config.validation_marketplace]
    return chosen


def _pools(rows: Iterable[Row]) -> dict[tuple[str, Label], list[Row]]:
    pools: dict[tuple[str, Label], list[Row]] = defaultdict(list)
    for row in rows:
        pools[row.source, row.label].append(row)
    return pools


def _ordered(pool: Sequence[Row]) -> list[Row]:
    return sorted(pool, key=lambda r: unit(r.id, "mix"))


def _from(pool: Sequence[Row], skip: int) -> list[Row]:
    start = skip % len(pool)
    return [*pool[start:], *pool[:start]]


def _short(row: Row, config: MixConfig) -> Row:
    return msgspec.structs.replace(row, text=row.text[: config.max_characters])
