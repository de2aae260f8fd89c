"""The frozen test sets: eval-1000 and eval-10k (a tenth violations), the stream (1.5 %), a writer's unseen messages.

Rows come from test splits, from the corpus's held-out hand, and, where a source's own test split is too small, from its
reserve. More than half of the clean rows come from the violations' own sources or are hard negatives. Each pool has one
order, and every set takes from its head: the sets overlap, so that one scoring pass covers all three.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gateway.lab.duplicates import near_duplicate_groups
from gateway.lab.rows import (
    CORPUS,
    SERVICE_SOURCES,
    UNTRAINED_SOURCES,
    VIOLATION_SOURCES,
    LabError,
    Row,
    read_corpus,
    read_public,
    rows_hash,
    unit,
    write_rows,
)
from gateway.lab.run_folder import run_folder

SEED = "frozen-1"
OWN_SOURCES = (*VIOLATION_SOURCES, CORPUS)
MANIFEST = "manifest.json"
UNSEEN = "unseen"
"""Every message of the corpus's second held-out hand; the other sets are drawn by recipe."""


class Recipe(NamedTuple):
    """Rows wanted of each source; a shortfall is made up by the other sources of the same mapping, in turn."""

    violations: Mapping[str, int]
    clean: Mapping[str, int]


def _violations(marketplace: int, **public: int) -> Mapping[str, int]:
    return {CORPUS: marketplace, **public}


RECIPES: Mapping[str, Recipe] = {
    "eval-1000": Recipe(
        _violations(34, **dict.fromkeys(VIOLATION_SOURCES, 11)),
        {CORPUS: 150, "davidson2017": 60, "edos": 80, "convabuse": 60, "uci_sms_spam": 60, "youtube_spam": 40,
         "spamassassin": 50, "sgd_services_homes": 120, "multidogo": 100, "banking77": 80, "nlupp": 30, "clinc150": 70},
    ),
    "eval-10k": Recipe(
        _violations(400, davidson2017=145, edos=145, convabuse=60, uci_sms_spam=60, youtube_spam=120, spamassassin=70),
        {CORPUS: 420, "davidson2017": 400, "edos": 2600, "convabuse": 400, "uci_sms_spam": 420, "youtube_spam": 170,
         "spamassassin": 290, "sgd_services_homes": 1500, "multidogo": 1200, "banking77": 800, "nlupp": 200,
         "clinc150": 600},
    ),
    "stream": Recipe(
        _violations(60, **dict.fromkeys(VIOLATION_SOURCES, 15)),
        {CORPUS: 420, "davidson2017": 400, "edos": 2850, "convabuse": 410, "uci_sms_spam": 425, "youtube_spam": 175,
         "spamassassin": 290, "sgd_services_homes": 1700, "multidogo": 1380, "banking77": 900, "nlupp": 200,
         "clinc150": 700},
    ),
}  # fmt: skip


def build_frozen(sources: Path, corpus: Path, out: Path) -> dict[str, Any]:
    """Write the four sets and `manifest.json` (hashes, counts, absent sources) to `out`; returns the manifest.

    The same files give the same bytes. Raises LabError, and leaves `out` as it was, where the disk refuses or so many
    sources are absent that a set has one label only.
    """
    rows, absent = read_public(sources, [*VIOLATION_SOURCES, *SERVICE_SOURCES, *UNTRAINED_SOURCES])
    own = read_corpus(corpus)
    pools = held_out_pools([*rows, *own])
    sets = {name: draw(pools, recipe) for name, recipe in RECIPES.items()}
    sets[UNSEEN] = [row for row in own if row.split == "unseen"]
    described = {name: describe(chosen) for name, chosen in sets.items()}
    manifest: dict[str, Any] = {"absent_sources": absent, "sets": described}
    for name in RECIPES:
        chosen = sets[name]
        if len({r.label for r in chosen}) < 2:
            raise LabError(f"{sources}: {name} would have one label only; absent sources: {', '.join(absent)}")
    with run_folder(out) as folder:
        for name, chosen in sets.items():
            write_rows(folder / f"{name}.jsonl.gz", chosen)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def held_out_pools(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Test rows by source and label in their frozen order: no twins among them, and none in any training row."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: unit(r.id, SEED)):
        parts[row.split].append(row)
    fresh = _without_twins(parts["train"], [*parts["test"], *parts["reserve"]])
    pools: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in fresh:
        pools[row.source, row.label].append(row)
    return pools


def draw(pools: Mapping[tuple[str, str], Sequence[Row]], recipe: Recipe) -> list[Row]:
    """The rows of a recipe, in the order of their ids' hash."""
    chosen = [*_take(pools, recipe.violations, "violation"), *_take(pools, recipe.clean, "clean")]
    return sorted(chosen, key=lambda r: unit(r.id, "order"))


def describe(rows: Sequence[Row]) -> dict[str, Any]:
    """Hash, size, counts per source and label, per policy, and the share of clean rows that are hard to tell."""
    clean = [r for r in rows if r.label == "clean"]
    near = sum(r.source in OWN_SOURCES for r in clean)
    return {
        "sha256": rows_hash(rows),
        "rows": len(rows),
        "violations": len(rows) - len(clean),
        "clean_from_violation_sources_or_hard": round(near / max(1, len(clean)), 4),
        "by_source": dict(sorted(Counter(f"{r.source}/{r.label}" for r in rows).items())),
        "by_policy": dict(sorted(Counter(r.policy for r in rows if r.policy).items())),
    }


def _without_twins(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    groups = near_duplicate_groups([r.text for r in [*before, *rows]])
    seen = set(groups[: len(before)])
    kept = []
    for row, group in zip(rows, groups[len(before) :], strict=True):
        if group not in seen:
            seen.add(group)
            kept.append(row)
    return kept


def _take(pools: Mapping[tuple[str, str], Sequence[Row]], wanted: Mapping[str, int], label: str) -> list[Row]:
    """The head of each pool; what a pool lacks is taken from the others one row at a time, largest remainder first."""
    size = {s: len(pools.get((s, label), ())) for s in wanted}
    taken = {s: min(n, size[s]) for s, n in wanted.items()}
    for _ in range(sum(wanted.values()) - sum(taken.values())):
        fullest = max(wanted, key=lambda s: (size[s] - taken[s], s))
        taken[fullest] += size[fullest] > taken[fullest]
    return [row for s, n in taken.items() for row in pools.get((s, label), ())[:n]]
