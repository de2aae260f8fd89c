"""`lab data --file`: files of one's own become sources beside the public ones, to train, calibrate and test on.

A row's side hangs on its group: rows of one `group` (a thread, a customer) and their near-duplicates stay together.
"""

import gzip
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.lab.duplicates import near_duplicate_groups
from gateway.lab.files import read_file
from gateway.lab.rows import (
    CORPUS,
    MARKETPLACE_DEV,
    OWN_FILES,
    SERVICE_SOURCES,
    SUFFIX,
    UNTRAINED_SOURCES,
    VIOLATION_SOURCES,
    LabError,
    Row,
    Side,
    SourceRow,
    read_public,
    unit,
    write_rows,
)
from gateway.lab.run_folder import run_folder
from gateway.lab.upstream.rows import content_hash

TEST_SHARE = 0.1
_TAKEN = (*VIOLATION_SOURCES, *SERVICE_SOURCES, *UNTRAINED_SOURCES, CORPUS, MARKETPLACE_DEV)


class Added(Struct, frozen=True):
    """What became of one file: counts by side and label, by policy, how many groups, and the hash of its rows."""

    source: str
    rows: int
    groups: int
    sha256: str
    by_side: dict[str, int]
    by_policy: dict[str, int]


def add_files(files: Sequence[Path], sources: Path | None, out: Path) -> list[Added]:
    """Write each file as `<stem>.jsonl.gz`, links to what is in `sources`, and `files.json`, to the new folder `out`.

    Its test rows are `test/<stem>.jsonl.gz` once more, in the form that `lab eval --data` reads. Raises LabError for a
    file that cannot be read, and where two would have one name; then nothing is written.
    """
    if out.exists():
        raise LabError(f"{out} exists; give a folder that does not")
    names = [path.name.split(".")[0] for path in files]
    if taken := sorted({name for name in names if names.count(name) > 1 or name in _TAKEN}):
        raise LabError(f"there is a source {', '.join(taken)} already: give the file another name")
    with run_folder(out) as fresh:
        for path in sources.iterdir() if sources is not None else ():
            if path.name.endswith(SUFFIX) or path.name == MARKETPLACE_DEV:
                (fresh / path.name).symlink_to(path.resolve())
        added = [_add(name, path, fresh) for name, path in zip(names, files, strict=True)]
        (fresh / OWN_FILES).write_bytes(msgspec.json.format(msgspec.json.encode(added)) + b"\n")
    return added


def _add(name: str, path: Path, folder: Path) -> Added:
    given = read_file(path)
    if len({row.id for row in given}) < len(given):
        raise LabError(f"{path}: two rows share an id")
    rows = [_source_row(name, row, group) for row, group in zip(given, _groups(given), strict=True)]
    body = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (folder / f"{name}{SUFFIX}").write_bytes(gzip.compress(body, 9, mtime=0))
    write_rows(folder / "test" / f"{name}{SUFFIX}", (r for r in read_public(folder, [name])[0] if r.split == "test"))
    return Added(
        source=name,
        rows=len(rows),
        groups=len({row.group for row in rows}),
        sha256=content_hash(rows),
        by_side=dict(sorted(Counter(f"{row.split}/{row.label}" for row in rows).items())),
        by_policy=dict(sorted(Counter(row.policy for row in rows if row.policy).items())),
    )


def _source_row(name: str, row: Row, group: str) -> SourceRow:
    side: Side = "test" if unit(group, "side") < TEST_SHARE else "train"
    return SourceRow(
        id=f"{name}-{row.id}", source=name, text=row.text, label=row.label, policy=row.policy, split=side, group=group,
        sender_role=row.sender_role,
    )  # fmt: skip


def _groups(rows: Sequence[Row]) -> list[str]:
    """Each row's group; those that have near-duplicates in common are one, named after the first in the alphabet."""
    texts: dict[int, list[str]] = defaultdict(list)
    twins = near_duplicate_groups([row.text for row in rows])
    for row, twin in zip(rows, twins, strict=True):
        texts[twin].append(row.group)
    name = {row.group: row.group for row in rows}

    def first(group: str) -> str:
        while name[group] != group:
            group = name[group]
        return group

    for groups in texts.values():
        ends = sorted({first(group) for group in groups})
        name.update(dict.fromkeys(ends, ends[0]))
    return [first(row.group) for row in rows]
