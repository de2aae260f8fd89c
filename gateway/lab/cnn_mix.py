"""What the prefilter trains on: every source of violations with clean rows of its own, much ordinary service talk, and
our own corpus several times over in changing disguises."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.lab.augment import disguise
from gateway.lab.mix import drop_twins_of_held_out
from gateway.lab.rows import (
    CORPUS,
    MARKETPLACE_DEV,
    SERVICE_SOURCES,
    Row,
    read_corpus,
    read_marketplace_dev,
    read_public,
    rows_hash,
    training_sources,
    unit,
)


class CnnMixConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows drawn in an epoch, and how often they are changed.

    `per_label` is the most that a source of violations gives of each label, and of clean rows `extra_clean` more, since
    any stream has more of them; `service` is the most of all service talk together. The corpus is seen `corpus_passes`
    times, and its plain messages, of which it has few and a deployment many, `plain_passes` times more. `joined` is the
    share of rows that get another clean message before or behind.
    """

    per_label: int = 1000
    extra_clean: int = 4500
    service: int = 20000
    corpus_passes: int = 4
    plain_passes: int = 6
    disguised: float = 0.3
    joined: float = 0.2
    pool_per_label: int = 7500
    pool_service: int = 30000
    seed: int = 20240612


class Pools(NamedTuple):
    """Training rows by source and label, rows to watch, and what was absent."""

    train: Mapping[tuple[str, str], Sequence[Row]]
    watched: Sequence[Row]
    platt: Sequence[Row]
    absent: Sequence[str]
    data_hash: str

    def counts(self) -> dict[str, int]:
        """Training rows per source and label."""
        return {f"{source}/{label}": len(rows) for (source, label), rows in sorted(self.train.items())}


def read_pools(sources: Path | None, corpus: Path, config: CnnMixConfig) -> Pools:
    """Read what there is, and keep away from training whatever resembles a held-out row. Raises LabError."""
    names = training_sources(sources)
    public, absent = read_public(sources, names) if sources is not None else ([], list(names))
    dev = read_marketplace_dev(sources) if sources is not None else []
    rows = [*public, *read_corpus(corpus)]
    held_out = [*(r for r in rows if r.split not in ("train", "reserve")), *dev]
    train = drop_twins_of_held_out(_candidates(rows, config), held_out)
    calibration = [r for r in rows if r.split == "calibration"]
    platt = [r for r in rows if r.split == "platt"]
    return Pools(_pools(train), [*dev, *calibration], platt, absent, rows_hash(train))


def draw_epoch(pools: Pools, config: CnnMixConfig, epoch: int) -> list[Row]:
    """The rows of one epoch, in random order. The same configuration and number give the same rows."""
    rng = random.Random(config.seed * 1000 + epoch)
    talk = [row for (source, _), rows in sorted(pools.train.items()) if source in SERVICE_SOURCES for row in rows]
    drawn = rng.sample(talk, min(config.service, len(talk)))
    for (source, label), rows in sorted(pools.train.items()):
        if source == CORPUS:
            drawn += list(rows) * config.corpus_passes
            drawn += [row for row in rows if row.difficulty == "plain"] * config.plain_passes
        elif source not in SERVICE_SOURCES:
            most = config.per_label + (config.extra_clean if label == "clean" else 0)
            drawn += rng.sample(rows, min(most, len(rows)))
    rng.shuffle(drawn)
    own = pools.train.get((CORPUS, "clean"), ())
    return [_changed(row, (talk, own), config, rng) for row in drawn]


def is_own(row: Row) -> bool:
    """Written for the marketplace: the messages that recall is promised on."""
    return row.source in (CORPUS, MARKETPLACE_DEV)


def shares(rows: Sequence[Row]) -> dict[str, int]:
    """Rows per source and label, for the record."""
    return dict(sorted(Counter(f"{row.source}/{row.label}" for row in rows).items()))


def _candidates(rows: Sequence[Row], config: CnnMixConfig) -> list[Row]:
    pools = _pools([r for r in rows if r.split == "train"])
    service = sum(len(pool) for (source, _), pool in pools.items() if source in SERVICE_SOURCES)
    kept: list[Row] = []
    for (source, _), pool in sorted(pools.items()):
        ordered = sorted(pool, key=lambda r: unit(r.id, "mix"))
        if source in SERVICE_SOURCES:
            kept += ordered[: config.pool_service * len(pool) // service]
        else:
            kept += ordered if source == CORPUS else ordered[: config.pool_per_label]
    return kept


def _pools(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    pools: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        pools[row.source, row.label].append(row)
    return pools


def _changed(row: Row, clean: Sequence[Sequence[Row]], config: CnnMixConfig, rng: random.Random) -> Row:
    """The row in disguise, or joined to a clean one: that changes no label."""
    text = row.text
    if rng.random() < config.disguised:
        text = disguise(text, rng)
    others = rng.choice(clean)
    if others and rng.random() < config.joined:
        more = rng.choice(others).text
        text = f"{more} {text}" if rng.random() < 0.5 else f"{text} {more}"
    return row if text is row.text else msgspec.structs.replace(row, text=text)
