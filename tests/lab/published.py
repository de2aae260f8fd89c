"""The public sources as they were published, in small: a few records of each form, and the rows that come of them."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence

from gateway.lab.upstream.rows import side

CONV = "6e1d"
MARKS = ("is_abuse.1", "is_abuse.0", "is_abuse.-1", "is_abuse.-2", "is_abuse.-3", "sex_harassment")


def table(columns: Sequence[str], *records: Sequence[object]) -> bytes:
    """A CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *records])
    return text.getvalue().encode()


def votes(*annotators: Mapping[str, str] | None) -> list[str]:
    """One record's marks: what each annotator marked, nothing where one did not see it."""
    return [("" if seen is None else seen.get(mark, "0")) for seen in annotators for mark in MARKS]


def archive(files: Mapping[str, object]) -> bytes:
    """A compressed archive of JSON files below one folder."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as tar:
        for name, value in files.items():
            content = json.dumps(value).encode()
            member = tarfile.TarInfo(f"top/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return body.getvalue()


def mail(group: str, number: str, body: str) -> dict[str, object]:
    """A mail as the archive holds it."""
    text = f"From: a\nSubject: b\n\n{body}"
    return {"id": number, "group": group, "checksum": {"type": "MD5", "value": "ab12"}, "text": text}


def dialogue(identity: str, service: str, *turns: str) -> dict[str, object]:
    """A dialogue with one service."""
    return {
        "dialogue_id": identity,
        "services": [service],
        "turns": [{"utterance": t, "speaker": "USER"} for t in turns],
    }


BAD, GOOD = {"is_abuse.-1": "1"}, {"is_abuse.1": "1"}
FILES: dict[str, bytes] = {
    "davidson2017": table(
        ("", "count", "hate_speech", "offensive_language", "neither", "class", "tweet"),
        (0, 3, 0, 0, 3, 2, '!!! RT @some_one: a &amp; b http://t.co/x1 "well"'),
        (7, 3, 0, 3, 0, 1, "what a rude gardener"),
        (8, 3, 0, 3, 0, 1, "What a rude gardener!"),
    ),
    "edos": table(
        ("rewire_id", "text", "label_sexist", "label_category", "label_vector", "split"),
        ("sexism2022_english-5", "[USER] look at this [URL]", "not sexist", "none", "none", "train"),
        ("sexism2022_english-6", "an unkind post", "sexist", "x", "y", "dev"),
        ("sexism2022_english-7", "kept by the publisher", "sexist", "x", "y", "test"),
    ),
    "convabuse": table(
        ("example_id", "user", *(f"Annotator{n}_{mark}" for n in (1, 2, 3) for mark in MARKS)),
        ("1.0", "hello you", *votes(GOOD, GOOD, BAD)),
        ("2.0", "silly machine", *votes(BAD, BAD, None)),
        ("3.0", "a lewd thing", *votes({**BAD, "sex_harassment": "1"}, {"is_abuse.-2": "0, 1"}, GOOD)),
    ),
    "uci_sms_spam": b'Label\tSMS\nham\tOn my way &lt;#&gt; "soon"\nspam\tWIN a prize now\n',
    "youtube_spam": table(
        ("COMMENT_ID", "AUTHOR", "DATE", "CONTENT", "CLASS"),
        ("z1", "a", "", "nice song<br />really\ufeff", 0),
        ("z2", "b", "", "my channel http://example.org/me", 1),
    ),
    "spamassassin": archive({
        "spam-1/00002.ab12.json": mail("spam-1", "00002", "Buy cheap land today"),
        "easy-ham-1/00001.ab12.json": mail("easy-ham-1", "00001", "A wrote:\n> the old text\nI agree with that"),
        "easy-ham-1/00003.ab12.json": mail("easy-ham-1", "00003", "long " * 300),
        "file_list.json": [],
    }),
    "sgd_services_homes": json.dumps([
        dialogue("1_00000", "Homes_1", "I look for a flat", "In which town?"), dialogue("1_00001", "Music_1", "Play it")
    ]).encode(),
    "multidogo": "\n".join("\t".join(line) for line in (
        ("conversationId", "turnNumber", "utteranceId", "utterance", "slot-labels", "intent"),
        (CONV, "0", "u", "hi", "O", "openinggreeting"),
        (CONV, "2", "u", 'i want "one ticket to rome', "O O O O O city", "bookflight"),
        (CONV, "4", "u", "my mail is a at b", "O O O email_address email_address email_address", "contentonly"),
    )).encode(),
    "banking77": table(("text", "category"), ("Where is my card?", "x"), ("where is my CARD?", "x")),
    "nlupp": json.dumps([{"text": "book a room", "intents": ["a"]}, {"text": "and a table", "slots": {}}]).encode(),
    "clinc150": json.dumps({
        "oos_val": [["how old is the sea", "oos"]], "val": [["set a timer", "t"]], "train": [["set a timer", "t"]],
        "oos_test": [], "test": [], "oos_train": [["who am i", "oos"]],
    }).encode(),
}  # fmt: skip
EXPECTED: dict[str, list[tuple[str, str, str | None, str]]] = {
    "davidson2017": [
        ("davidson-0", ': a & b "well', None, side("davidson-0")),
        ("davidson-7", "what a rude gardener", "abuse", side("davidson-7")),
    ],
    "edos": [
        ("sexism2022_english-5", "look at this", None, "train"),
        ("sexism2022_english-6", "an unkind post", "abuse", "test"),
    ],
    "convabuse": [
        ("convabuse-train-1.0", "hello you", None, "train"),
        ("convabuse-train-2.0", "silly machine", "abuse", "train"),
        ("convabuse-train-3.0", "a lewd thing", "sexual", "train"),
    ],
    "uci_sms_spam": [
        ("ucisms-1", 'On my way <#> "soon', None, side("ucisms-1")),
        ("ucisms-2", "WIN a prize now", "spam_scam", side("ucisms-2")),
    ],
    "youtube_spam": [
        ("yt-z1", "nice song really", None, "train"),
        ("yt-z2", "my channel http://example.org/me", "spam_scam", "train"),
    ],
    "spamassassin": [
        ("sa-easy-ham-1-00001.ab12", "A wrote: I agree with that", None, side("sa-easy-ham-1-00001.ab12")),
        ("sa-spam-1-00002.ab12", "Buy cheap land today", "spam_scam", side("sa-spam-1-00002.ab12")),
    ],
    "sgd_services_homes": [
        ("sgd-train-1_00000-0", "I look for a flat", None, "train"),
        ("sgd-train-1_00000-1", "In which town?", None, "train"),
    ],
    "multidogo": [(f"mdg-airline-train-{CONV}-2-1", 'i want "one ticket to rome', None, "train")],
    "banking77": [("b77-train-0", "Where is my card?", None, "train")],
    "nlupp": [
        ("nlupp-hotels-0-0", "book a room", None, side("nlupp-hotels-0-0")),
        ("nlupp-hotels-0-1", "and a table", None, side("nlupp-hotels-0-1")),
    ],
    "clinc150": [
        ("clinc-oos_val-0", "how old is the sea", None, "test"), ("clinc-val-0", "set a timer", None, "test"),
        ("clinc-oos_train-0", "who am i", None, "train"),
    ],
}  # fmt: skip
