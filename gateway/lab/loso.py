"""`lab loso`: leave one source out. How well violations of a source are ranked by a model that never saw that source.

In-domain numbers stand beside: their difference is what a model learned of the source and not of the policy.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from gateway.lab.evaluate import write_json
from gateway.lab.metrics import Interval, auc
from gateway.lab.report import table
from gateway.lab.rows import MARKETPLACE_DEV, OWN_FILES, VIOLATION_SOURCES, LabError, Row, read_public, rows_hash
from gateway.lab.trainers import Scorer, Trainer

RESULT = "loso.json"
_ALL = "all"


class LeftOut(Struct, frozen=True, kw_only=True):
    """AUC on a source's test rows, which have this hash: trained with it, and without it."""

    data_sha256: str
    rows: int
    violations: int
    in_domain: Interval
    left_out: Interval


def leave_one_out(
    train: Trainer, sources: Path, out: Path, names: Sequence[str] = VIOLATION_SOURCES
) -> dict[str, LeftOut]:
    """One training per source, and one with all; each is kept in `out` and not repeated. Raises LabError."""
    rows, absent = read_public(sources, names)
    present = [name for name in names if name not in absent]
    if len(present) < 2:
        raise LabError(f"{sources}: leaving one source out needs two sources of violations; there are {len(present)}")
    tests = {name: [r for r in rows if r.source == name and r.split == "test"] for name in present}
    with_all = train(_linked(sources, out / _ALL / "sources", None), out / _ALL)
    found = {name: _left_out(train, with_all, sources, out / name, test) for name, test in tests.items()}
    write_json(out / RESULT, found)
    (out / "report.md").write_text("\n".join(markdown(found)) + "\n")
    return found


def markdown(found: dict[str, LeftOut]) -> list[str]:
    """The report's lines."""
    head = ["source", "test rows", "violations", "data", "AUC trained with it", "AUC never seen"]
    rows = [[name, f.rows, f.violations, f.data_sha256[:12], f.in_domain, f.left_out] for name, f in found.items()]
    return ["# Leave one source out\n", *table(head, rows)]


def _left_out(train: Trainer, with_all: Scorer, sources: Path, out: Path, test: Sequence[Row]) -> LeftOut:
    kept = out / "result.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=LeftOut)
    name = test[0].source
    without = train(_linked(sources, out / "sources", name), out)
    truth = np.array([row.label == "violation" for row in test])
    found = LeftOut(
        data_sha256=rows_hash(test),
        rows=len(test),
        violations=int(truth.sum()),
        in_domain=auc(truth, with_all(test)),
        left_out=auc(truth, without(test)),
    )
    write_json(kept, found)
    return found


def _linked(sources: Path, folder: Path, without: str | None) -> Path:
    """A folder of links to all sources but one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources.iterdir():
        link = folder / path.name
        wanted = path.name.endswith(".jsonl.gz") or path.name in (MARKETPLACE_DEV, OWN_FILES)
        if wanted and path.name.split(".")[0] != without and not link.is_symlink():
            link.symlink_to(path.resolve())
    return folder
