"""Mails that were published as JSON, one a file, inside one compressed archive."""

import io
import re
import tarfile
from collections.abc import Iterator

import msgspec

from gateway.lab.rows import LabError
from gateway.lab.upstream.rows import Draft, Part, cleaned

GROUPS = {"easy-ham-1": None, "easy-ham-2": None, "hard-ham-1": None, "spam-1": "spam_scam", "spam-2": "spam_scam"}
_FEWEST, _MOST = 10, 1_000
_UNPACKED_BYTES = 256 * 2**20
_QUOTED = re.compile(r"(?m)^[ \t]*>.*$")
_FILE = re.compile(rf"(?:^|/)data/({'|'.join(GROUPS)})/\d{{5}}\.[0-9a-f]+\.json$")


class _Checksum(msgspec.Struct):
    value: str


class _Mail(msgspec.Struct):
    id: str
    group: str
    checksum: _Checksum
    text: str


def spamassassin(part: Part, body: bytes) -> Iterator[Draft]:
    """Bodies of mails, without the lines that quote another mail, of 10 to 1,000 characters after cleaning."""
    for _, raw in sorted(_files(body)):
        mail = msgspec.json.decode(raw, type=_Mail)
        text = _QUOTED.sub("", mail.text.replace("\r\n", "\n").partition("\n\n")[2])
        if _FEWEST <= len(cleaned(text)) <= _MOST:
            yield Draft(f"{mail.group}-{mail.id}.{mail.checksum.value}", text, GROUPS[mail.group])


def _files(body: bytes) -> Iterator[tuple[str, bytes]]:
    """The archive's mails by path. Nothing is written to disk, and no more is unpacked than the corpus can hold."""
    unpacked = 0
    with tarfile.open(fileobj=io.BytesIO(body), mode="r|gz") as archive:
        for member in archive:
            unpacked += member.size
            if unpacked > _UNPACKED_BYTES:
                raise LabError(f"the archive of mails unpacks to more than {_UNPACKED_BYTES} bytes")
            found = _FILE.search(member.name)
            content = archive.extractfile(member) if found and member.isfile() else None
            if found and content is not None:
                yield found[0].lstrip("/"), content.read()
