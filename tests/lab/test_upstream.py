"""Rebuilding the public sources, from a server on loopback with small files of the published forms."""

import gzip
import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from gateway.cli.lab import lab
from gateway.lab.rows import LabError, SourceRow, read_public
from gateway.lab.upstream.build import REPORT, rebuild
from gateway.lab.upstream.download import Downloads
from gateway.lab.upstream.rows import cleaned, content_hash
from gateway.lab.upstream.sources import UPSTREAM
from tests.lab.published import EXPECTED, FILES


class Quiet(SimpleHTTPRequestHandler):
    """The files of a folder, without lines on the terminal."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Every part of every source at its published path; the parts of one source are equal."""
    folder = tmp_path / "published"
    for name, source in UPSTREAM.items():
        for part in source.parts:
            path = folder / source.root / part.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(FILES[name])
    return folder


@pytest.fixture
def host(published: Path) -> Iterator[str]:
    """The address of a server of those files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch() -> Iterator[Downloads]:
    """Downloads of at most 20 kB a file."""
    with Downloads(file_bytes=20_000) as downloads:
        yield downloads


def test_each_published_form_becomes_rows(host: str, fetch: Downloads, tmp_path: Path) -> None:
    """Ids, cleaned texts, policies and sides of every source; the lab reads the files as it reads any source."""
    built = rebuild(list(UPSTREAM), tmp_path / "out", fetch, host=host, at_hand=None)
    assert [b.source for b in built] == list(UPSTREAM)
    for name, expected in EXPECTED.items():
        lines = gzip.decompress((tmp_path / "out" / f"{name}.jsonl.gz").read_bytes()).splitlines()
        rows = [json.loads(line) for line in lines][: len(expected)]
        assert [(r["id"], r["text"], r["policy"], r["split"]) for r in rows] == expected, name
        assert all(r["label"] == ("violation" if r["policy"] else "clean") for r in rows)
    rows, absent = read_public(tmp_path / "out", list(UPSTREAM))
    assert (absent, len(rows)) == ([], sum(b.rows for b in built))


def test_other_rows_than_the_pinned_ones_are_told(host: str, fetch: Downloads, tmp_path: Path) -> None:
    """A hash that differs is a line in the report, with the counts beside the sources at hand, and no failure."""
    first = rebuild(["edos", "nlupp"], tmp_path / "first", fetch, host=host, at_hand=None)
    assert {b.verdict for b in first} == {"differs"}
    path = tmp_path / "first" / "edos.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(
        gzip.compress("\n".join([lines[0].replace("look", "gaze"), lines[1].replace("-6", "-9")]).encode())
    )
    edos, nlupp = rebuild(["edos", "nlupp"], tmp_path / "second", fetch, host=host, at_hand=tmp_path / "first")
    assert edos.at_hand is not None
    assert (edos.at_hand.added, edos.at_hand.missing, edos.at_hand.changed) == (1, 1, 1)
    assert nlupp.at_hand is not None
    assert (nlupp.at_hand.sha256, nlupp.at_hand.changed) == (nlupp.sha256, 0)
    assert json.loads((tmp_path / "second" / REPORT).read_text())[0]["verdict"] == "differs"


def test_what_was_pinned_is_recognised(
    host: str, fetch: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same published bytes give the same hash, whatever the order of the rows."""
    (found,) = rebuild(["clinc150"], tmp_path / "first", fetch, host=host, at_hand=None)
    monkeypatch.setitem(UPSTREAM, "clinc150", UPSTREAM["clinc150"]._replace(sha256=found.sha256))
    (again,) = rebuild(["clinc150"], tmp_path / "second", fetch, host=host, at_hand=None)
    assert again.verdict == "as pinned"
    rows = [SourceRow(f"s-{n}", "s", f"text {n}", "clean", None, "train") for n in range(5)]
    assert content_hash(rows) == content_hash(rows[::-1]) != content_hash(rows[1:])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "404"),
        (b"text,category\n" + b"x" * 30_000, "more than 20000 bytes"),
        (b"question,category\nwhere,x\n", "train.csv is not of the form it was: KeyError: 'text'"),
        (b"text,category\n\xff\xfe,x\n", "UnicodeDecodeError"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(
    host: str, published: Path, fetch: Downloads, tmp_path: Path, body: bytes | None, says: str
) -> None:
    """An absent, oversized or changed file is named with the reason, and no folder is left."""
    path = published / UPSTREAM["banking77"].root / UPSTREAM["banking77"].parts[0].path
    path.unlink() if body is None else path.write_bytes(body)
    with pytest.raises(LabError, match=says):
        rebuild(["nlupp", "banking77"], tmp_path / "out", fetch, host=host, at_hand=None)
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_none_is_refused(host: str, published: Path, fetch: Downloads, tmp_path: Path) -> None:
    """A truncated archive is named with its address."""
    source = UPSTREAM["spamassassin"]
    (published / source.root / source.parts[0].path).write_bytes(FILES["spamassassin"][:100])
    with pytest.raises(LabError, match=r"v0\.2\.3 is not of the form"):
        rebuild(["spamassassin"], tmp_path / "out", fetch, host=host, at_hand=None)


def test_a_file_has_its_time(host: str, tmp_path: Path) -> None:
    """A download that takes longer than it may is given up."""
    with Downloads(file_seconds=0.0) as fetch, pytest.raises(LabError, match="not read within 0 seconds"):
        rebuild(["banking77"], tmp_path / "out", fetch, host=host, at_hand=None)


def test_only_https_leaves_the_machine(fetch: Downloads, tmp_path: Path) -> None:
    """A mirror elsewhere without https is refused before anything is asked of it; so is a folder that exists."""
    with pytest.raises(LabError, match="only https"):
        rebuild(["edos"], tmp_path / "out", fetch, host="http://mirror.example", at_hand=None)
    with pytest.raises(LabError, match="exists"):
        rebuild(["edos"], tmp_path, fetch, host=None, at_hand=None)
    assert all(source.host.startswith("https://") for source in UPSTREAM.values())


def test_the_command_says_what_it_built(host: str, tmp_path: Path) -> None:
    """A line for each source: rows, verdict, and what is other than at hand; a source that is none is refused."""
    words = ("data", "--from-upstream", "--upstream-url", host, "--source", "edos")
    first = CliRunner().invoke(lab, [*words, "--out", str(tmp_path / "first")])
    assert first.output == "edos: 2 rows, differs\n"
    beside = CliRunner().invoke(lab, [*words, "--out", str(tmp_path / "b"), "--sources", str(tmp_path / "first")])
    assert beside.output == "edos: 2 rows, differs; beside those at hand 0 more, 0 fewer, 0 other\n"
    unknown = CliRunner().invoke(lab, [*words, "--source", "nowhere", "--out", str(tmp_path / "c")])
    assert unknown.exit_code == 2
    assert "there is no source nowhere" in unknown.output


@pytest.mark.parametrize(
    ("published_text", "expected"),
    [
        ('"@a_b: quoted  text" http://t.co/AbC1 !!', ": quoted text"),
        ("a@b.example and RT here", "a.example and here"),
        ("&amp;#8220;so&amp;#8221;", "\u201cso\u201d"),
        ("see http://example.org/x", "see http://example.org/x"),
    ],
)
def test_cleaning(published_text: str, expected: str) -> None:
    """User names, short links, retweet marks and outer quotes go; a spelt-out link stays; cleaning twice is once."""
    assert cleaned(published_text) == expected
    assert cleaned(expected) == expected
