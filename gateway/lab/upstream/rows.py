"""One row of a rebuilt source, and the rules that all sources share: cleaning, repeats, the split by hash."""

import hashlib
import html
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from gateway.lab.rows import Label, Side, SourceRow

MOST_TEST = 100
"""Of a thousand: the ids that are `test` where the publisher made no split."""
FEWEST_CHARACTERS = 2

_PERSONAL = re.compile(r"\[USER\]|\[URL\]|@\w+|https?://t\.co/\w+|\bRT\b")
"""Names and links as the publishers masked or shortened them. A spelt-out link is kept: it is what makes spam spam."""
_BREAK = re.compile(r"<br ?/?>")


class Part(NamedTuple):
    """One published file: where it is in the repository, its word in the ids, its side where the publisher split."""

    path: str
    name: str = ""
    split: Side | None = None


class Draft(NamedTuple):
    """What a reader finds: the id's last part and the text as published. Without a policy it is clean."""

    id: str
    text: str
    policy: str | None = None
    split: Side | None = None


def finished(source: str, prefix: str, drafts: Iterable[Draft]) -> Iterator[SourceRow]:
    """The drafts as rows: cleaned, the first of each text kept, too short ones dropped, a side for each."""
    seen = set()
    for draft in drafts:
        text = cleaned(draft.text)
        if len(text) < FEWEST_CHARACTERS or text.lower() in seen:
            continue
        seen.add(text.lower())
        identity = f"{prefix}-{draft.id}"
        label: Label = "violation" if draft.policy else "clean"
        yield SourceRow(identity, source, text, label, draft.policy, draft.split or side(identity))


def cleaned(text: str) -> str:
    """The text without HTML escapes, user names, short links and retweet marks; one space between words."""
    bare = _PERSONAL.sub("", _BREAK.sub(" ", html.unescape(html.unescape(text))))
    return " ".join(bare.split()).strip('"! ')


def side(identity: str) -> Side:
    """About a tenth is `test`, by the id alone."""
    return "test" if int(hashlib.sha256(identity.encode()).hexdigest(), 16) % 1000 < MOST_TEST else "train"


def content_hash(rows: Iterable[SourceRow]) -> str:
    """sha256 over the rows' JSON lines in the order of their ids."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda r: r.id):
        digest.update(msgspec.json.encode(row) + b"\n")
    return digest.hexdigest()
