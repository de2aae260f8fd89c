"""Labelled messages: the row, and the readers that make it from public sources and our corpus."""

import gzip
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from gateway.core.problems import Unusable
from gateway.lab.whole import write_whole

T = TypeVar("T")
Label = Literal["clean", "violation"]
Split = Literal["train", "platt", "calibration", "validation", "reserve", "test", "unseen"]
SenderRole = Literal["customer", "pro"]
Side = Literal["train", "test"]
"""Where the publisher put a row."""

CORPUS = "marketplace"
MARKETPLACE_DEV = "marketplace_dev"
VIOLATION_SOURCES = ("davidson2017", "edos", "convabuse", "uci_sms_spam", "youtube_spam", "spamassassin")
SERVICE_SOURCES = ("sgd_services_homes", "multidogo", "banking77", "nlupp")
UNTRAINED_SOURCES = ("clinc150",)
SUFFIX = ".jsonl.gz"
OWN_FILES = "files.json"
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


class SourceRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line of a source's file. Rows of one `group` share a split; a row without one stands alone."""

    id: str
    source: str
    text: str
    label: Label
    policy: str | None
    split: Side
    group: str = ""
    sender_role: SenderRole | None = None


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


class _Named(msgspec.Struct):
    source: str


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
    """Rows of the named sources (one `<name>.jsonl.gz` each), and the names that are absent."""
    absent = [name for name in names if not (folder / f"{name}{SUFFIX}").exists()]
    return [row for name in names if name not in absent for row in _public(folder / f"{name}{SUFFIX}")], absent


def training_sources(folder: Path | None) -> tuple[str, ...]:
    """The public sources that may be trained on, present or not, and those of one's own that `files.json` names."""
    own = folder / OWN_FILES if folder is not None else None
    further = [found.source for found in _decoded(own, list[_Named])] if own is not None and own.exists() else []
    return (*VIOLATION_SOURCES, *SERVICE_SOURCES, *further)


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


def write_rows(path: Path, rows: Iterable[Row | CorpusRow]) -> None:
    """Gzip JSONL without a time stamp, so that equal rows make equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    write_whole(path, gzip.compress(body, 9, mtime=0))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return list(read_jsonl(path, Row))


def _public(path: Path) -> Iterator[Row]:
    for raw in read_jsonl(path, SourceRow):
        role: SenderRole = raw.sender_role or ("customer" if unit(raw.id, "role") < 0.5 else "pro")
        yield Row(
            id=raw.id, source=raw.source, text=raw.text, label=raw.label, policy=raw.policy,
            split=_public_split(raw), group=raw.group or raw.id, sender_role=role,
        )  # fmt: skip


def _public_split(raw: SourceRow) -> Split:
    if raw.split == "test":
        return "test"
    if unit(raw.group or raw.id, "split") < CALIBRATION_SHARE:
        return _calibration_half(raw.group or raw.id)
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
    for number, line in enumerate(read_lines(path), 1):
        try:
            yield decoder.decode(line)
        except msgspec.DecodeError as e:
            raise LabError(f"{path}:{number}: {e}") from e


def _decoded(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise LabError(f"{path}: {error}") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file (also .gz) that are not blank. Raises LabError."""
    try:
        body = path.read_bytes()
        body = gzip.decompress(body) if path.suffix == ".gz" else body
    except (OSError, EOFError) as e:
        raise LabError(f"{path}: {e}") from e
    return (line for line in body.split(b"\n") if line.strip())
