"""Labelled messages: the row, and the readers that make it from public sources, our corpus and anybody's file."""

import csv
import gzip
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from gateway.core.problems import Unusable

T = TypeVar("T")
Label = Literal["clean", "violation"]
Split = Literal["train", "platt", "calibration", "validation", "reserve", "test", "unseen"]
SenderRole = Literal["customer", "pro"]

CORPUS = "marketplace"
MARKETPLACE_DEV = "marketplace_dev"
VIOLATION_SOURCES = ("davidson2017", "edos", "convabuse", "uci_sms_spam", "youtube_spam", "spamassassin")
SERVICE_SOURCES = ("sgd_services_homes", "multidogo", "banking77", "nlupp")
UNTRAINED_SOURCES = ("clinc150",)
HELD_OUT_HANDS: Mapping[str, Split] = {"fir": "test", "juniper": "unseen"}
"""Writers of the corpus whose messages are never trained on. The first one's are the marketplace's part of the frozen
sets; the second one's are a set of their own, looked at last: ordinary talk of buyers and sellers, and hard pairs."""
CALIBRATION_SHARE = 0.10
"""Of what is not a source's own test split. One half, `platt`, gives scores their meaning and is used for nothing else;
thresholds, prompts and the like are chosen on the other half, `calibration`."""
_RESERVED = {"edos": 0.85}
"""Sources whose own `test` split has too few clean rows for the frozen sets: the clean `train` rows above this point of
the order in which the mix draws (`unit(id, "mix")`) are a `reserve` for them, never trained on."""


class LabError(Unusable, ValueError):
    """Input that the lab cannot use. The message says which file, what is wrong and what would be right."""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One labelled message. `group` ties rows that must share a split; `hand` is the corpus writer."""

    id: str
    source: str
    text: str
    label: Label
    split: Split
    policy: str | None = None
    group: str = ""
    sender_role: SenderRole = "customer"
    difficulty: str | None = None
    hand: str | None = None
    mirrors: str | None = None


class _PublicRow(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    source: str
    text: str
    label: Label
    policy: str | None
    split: Literal["train", "test"]


class CorpusRow(msgspec.Struct, kw_only=True):
    """One line of a writer's file; other keys (trade, notes) are dropped."""

    id: str
    hand: str
    sender_role: SenderRole
    message: str
    label: Label
    policy: str | None
    difficulty: str
    mirrors: str | None = None


class _DevRow(msgspec.Struct):
    id: str
    sender_role: SenderRole
    message: str
    label: Label
    policy: str | None
    difficulty: str


def unit(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the key alone: the same row is always on the same side of a split."""
    digest = hashlib.sha256(f"{salt}\x00{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def rows_hash(rows: Iterable[Row]) -> str:
    """sha256 over the rows' canonical JSON in the order of their ids."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda r: r.id):
        digest.update(msgspec.json.encode(row, order="deterministic") + b"\n")
    return digest.hexdigest()


def read_public(folder: Path, names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Rows of the named public sources (one `<name>.jsonl.gz` each), and the names that are absent."""
    absent = [name for name in names if not (folder / f"{name}.jsonl.gz").exists()]
    return [row for name in names if name not in absent for row in _public(folder / f"{name}.jsonl.gz")], absent


def read_corpus(path: Path) -> list[Row]:
    """Our own marketplace corpus: the held-out hand is `test`, a tenth of the others for calibration."""
    rows = (_corpus_row(raw) for raw in read_jsonl(path, CorpusRow))
    return list(rows)


def read_marketplace_dev(folder: Path) -> list[Row]:
    """The marketplace's development messages: validation only, whoever asks. Empty if the file is absent."""
    path = folder / MARKETPLACE_DEV / f"{MARKETPLACE_DEV}.jsonl"
    if not path.exists():
        return []
    return [
        Row(
            id=raw.id, source=MARKETPLACE_DEV, text=raw.message, label=raw.label, policy=raw.policy, split="validation",
            group=raw.id, sender_role=raw.sender_role, difficulty=raw.difficulty,
        )
        for raw in read_jsonl(path, _DevRow)
    ]  # fmt: skip


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


def write_rows(path: Path, rows: Iterable[Row | CorpusRow]) -> None:
    """Gzip JSONL without a time stamp, so that equal rows make equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(body, 9, mtime=0))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return list(read_jsonl(path, Row))


def _public(path: Path) -> Iterator[Row]:
    for raw in read_jsonl(path, _PublicRow):
        role: SenderRole = "customer" if unit(raw.id, "role") < 0.5 else "pro"
        yield Row(
            id=raw.id, source=raw.source, text=raw.text, label=raw.label, policy=raw.policy,
            split=_public_split(raw), group=raw.id, sender_role=role,
        )  # fmt: skip


def _public_split(raw: _PublicRow) -> Split:
    if raw.split == "test":
        return "test"
    if unit(raw.id, "split") < CALIBRATION_SHARE:
        return _calibration_half(raw.id)
    reserved = raw.label == "clean" and unit(raw.id, "mix") >= _RESERVED.get(raw.source, 1.0)
    return "reserve" if reserved else "train"


def _calibration_half(identity: str) -> Split:
    return "platt" if unit(identity, "platt") < 0.5 else "calibration"


def _corpus_row(raw: CorpusRow) -> Row:
    split = _calibration_half(raw.id) if unit(raw.id, "split") < CALIBRATION_SHARE else "train"
    return Row(
        id=raw.id, source=CORPUS, text=raw.message, label=raw.label, policy=raw.policy, group=raw.id, hand=raw.hand,
        split=HELD_OUT_HANDS.get(raw.hand, split),
        sender_role=raw.sender_role, difficulty=raw.difficulty, mirrors=raw.mirrors,
    )  # fmt: skip


def read_jsonl(path: Path, kind: type[T]) -> Iterator[T]:
    """The lines of a JSONL file (also .gz), each checked against `kind`. Raises LabError with the line's number."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(_lines(path), 1):
        try:
            yield decoder.decode(line)
        except msgspec.DecodeError as e:
            raise LabError(f"{path}:{number}: {e}") from e


def _lines(path: Path) -> Iterator[bytes]:
    try:
        body = path.read_bytes()
        body = gzip.decompress(body) if path.suffix == ".gz" else body
    except (OSError, EOFError) as e:
        raise LabError(f"{path}: {e}") from e
    return (line for line in body.split(b"\n") if line.strip())


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        text = b"\n".join(_lines(path)).decode("utf-8-sig")
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
