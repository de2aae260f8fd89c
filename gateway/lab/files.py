"""Anyone's labelled file: CSV, JSONL or Parquet."""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.lab.rows import LabError, Row, Split, read_jsonl, read_lines


def read_file(path: Path, split: Split = "test") -> list[Row]:
    """Anyone's labelled CSV, JSONL (also .gz) or Parquet with `text,label[,policy,group,sender_role,id,source]`.

    Raises LabError for missing columns, unknown labels, an empty file or a file with one class only.
    """
    rows = [_file_row(path, number, record, split) for number, record in enumerate(_records(path), 1)]
    if not rows:
        raise LabError(f"{path}: no rows")
    if len({row.label for row in rows}) < 2:
        raise LabError(f"{path}: every row is {rows[0].label}; both `clean` and `violation` are needed")
    return rows


def read_weighted(path: Path, split: Split) -> tuple[list[Row], list[float]]:
    """The same rows with their `weight`: how many of the stream each stands for; 1 where the file has none.

    Raises LabError for a weight that is no positive number too.
    """
    weights = [_weight(path, number, record) for number, record in enumerate(_records(path), 1)]
    return read_file(path, split), weights


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        text = b"\n".join(read_lines(path)).decode("utf-8-sig")
        return iter(csv.DictReader(io.StringIO(text)))
    if name.endswith((".jsonl", ".ndjson")):
        return read_jsonl(path, dict[str, Any])
    if name.endswith(".parquet"):
        return _parquet(path)
    raise LabError(f"{path}: unknown kind of file; use .csv, .jsonl (also .gz) or .parquet")


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    # Heavy, and only Parquet needs it.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as e:
        raise LabError(f"{path}: {e}") from e
    return iter(table.to_pylist())


def _weight(path: Path, number: int, record: Mapping[str, Any]) -> float:
    given = record.get("weight")
    try:
        weight = 1.0 if given in (None, "") else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise LabError(f"{path}: row {number}: the weight `{given}` is no positive number")
    return weight


def _file_row(path: Path, number: int, record: Mapping[str, Any], split: Split) -> Row:
    missing = [name for name in ("text", "label") if not record.get(name)]
    if missing:
        raise LabError(f"{path}: row {number} lacks {' and '.join(missing)}; columns: text,label[,policy,group]")
    identity = str(record.get("id") or f"{path.stem}-{number:06d}")
    known = {k: record[k] for k in ("policy", "sender_role", "difficulty") if record.get(k)}
    fields = known | {
        "id": identity, "source": str(record.get("source") or path.name.split(".")[0]), "text": str(record["text"]),
        "label": record["label"], "group": str(record.get("group") or identity), "split": split,
    }  # fmt: skip
    try:
        return msgspec.convert(fields, Row)
    except msgspec.ValidationError as e:
        raise LabError(f"{path}: row {number}: {e}") from e
