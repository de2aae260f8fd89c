"""Build the sources' files from what was published, and say of each whether it is what the results were measured on."""

import csv
import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from gateway.lab.rows import LabError, SourceRow, read_jsonl
from gateway.lab.run_folder import run_folder
from gateway.lab.upstream.download import Fetch
from gateway.lab.upstream.rows import Draft, content_hash, finished
from gateway.lab.upstream.sources import UPSTREAM, Upstream

REPORT = "upstream.json"
Verdict = Literal["as pinned", "differs"]
_UNREADABLE = (
    KeyError, IndexError, AttributeError, TypeError, UnicodeDecodeError, EOFError, csv.Error, tarfile.TarError,
    zlib.error, msgspec.DecodeError,
)  # fmt: skip


class BesideHand(msgspec.Struct, frozen=True):
    """The built rows beside those at hand, by id: only built, only at hand, in both with other contents."""

    sha256: str
    added: int
    missing: int
    changed: int


class Built(msgspec.Struct, frozen=True):
    """What became of one source. `at_hand` is None where no file of it was given to compare with."""

    source: str
    rows: int
    sha256: str
    pinned: str
    verdict: Verdict
    at_hand: BesideHand | None


def rebuild(names: Sequence[str], out: Path, fetch: Fetch, *, host: str | None, at_hand: Path | None) -> list[Built]:
    """Write `<name>.jsonl.gz` of each source and `upstream.json` into the new folder `out`.

    `host` takes the place of the publishers' own (a mirror with the same paths); `at_hand` is a folder of the same
    sources to compare with. Other rows than the pinned ones are told, not refused. Raises LabError where `out` exists,
    a file cannot be had or is of another form, or the disk refuses; then nothing is written.
    """
    if out.exists():
        raise LabError(f"{out} exists; give a folder that does not")
    if host is not None:
        _check_host(host)
    with run_folder(out) as fresh:
        built = [_build(name, UPSTREAM[name], fresh, fetch, host, at_hand) for name in names]
        (fresh / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(built)) + b"\n")
    return built


def _build(name: str, source: Upstream, folder: Path, fetch: Fetch, host: str | None, at_hand: Path | None) -> Built:
    rows = list(finished(name, source.prefix, _drafts(source, fetch, host or source.host)))
    body = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(body, 9, mtime=0))
    found = content_hash(rows)
    verdict: Verdict = "as pinned" if found == source.sha256 else "differs"
    old = None if at_hand is None else at_hand / f"{name}.jsonl.gz"
    return Built(name, len(rows), found, source.sha256, verdict, _beside(rows, old) if old and old.exists() else None)


def _drafts(source: Upstream, fetch: Fetch, host: str) -> Iterator[Draft]:
    for part in source.parts:
        url = f"{host.rstrip('/')}/{source.root}/{part.path}"
        body = fetch(url)
        try:
            yield from source.read(part, body)
        except _UNREADABLE as error:
            raise LabError(f"{url} is not of the form it was: {type(error).__name__}: {error}") from error


def _beside(rows: Sequence[SourceRow], path: Path) -> BesideHand:
    new = {row.id: row for row in rows}
    old = {row.id: row for row in read_jsonl(path, SourceRow)}
    return BesideHand(
        sha256=content_hash(old.values()),
        added=len(new.keys() - old.keys()),
        missing=len(old.keys() - new.keys()),
        changed=sum(new[identity] != old[identity] for identity in new.keys() & old.keys()),
    )


def _check_host(host: str) -> None:
    parts = urlsplit(host)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise LabError(f"{host}: only https, unless the host is this one")
