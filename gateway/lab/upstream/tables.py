"""Sources that were published as CSV, TSV or lines with a tab."""

import csv
import io
from collections.abc import Iterator, Mapping

from gateway.lab.upstream.rows import Draft, Part

_FEWEST_WORDS = 5
_CONTACT = ("email", "phone", "address")
_ANNOTATORS = range(1, 9)
_ABUSIVE = ("-1", "-2", "-3")


def davidson(part: Part, body: bytes) -> Iterator[Draft]:
    """Tweets; class 2 is neither hateful nor offensive."""
    for record in _csv(body):
        yield Draft(record[""], record["tweet"], None if record["class"] == "2" else "abuse")


def edos(part: Part, body: bytes) -> Iterator[Draft]:
    """Posts; the publisher's `dev` is our test, and its `test` is left alone."""
    for record in _csv(body):
        if record["split"] in ("train", "dev"):
            policy = "abuse" if record["label_sexist"] == "sexist" else None
            split = part.split or ("train" if record["split"] == "train" else "test")
            yield Draft(record["rewire_id"].removeprefix("sexism2022_english-"), record["text"], policy, split)


def convabuse(part: Part, body: bytes) -> Iterator[Draft]:
    """What users said to an agent. Abuse is what most of its annotators rated below zero."""
    for record in _csv(body):
        yield Draft(f"{part.name}-{record['example_id']}", record["user"], _conv_policy(record), part.split)


def _conv_policy(record: Mapping[str, str]) -> str | None:
    rated = [n for n in _ANNOTATORS if any(_marked(record, n, f"is_abuse.{v}") for v in ("1", "0", *_ABUSIVE))]
    abusive = [n for n in rated if any(_marked(record, n, f"is_abuse.{v}") for v in _ABUSIVE)]
    if 2 * len(abusive) <= len(rated):
        return None
    return "sexual" if any(_marked(record, n, "sex_harassment") for n in abusive) else "abuse"


def _marked(record: Mapping[str, str], annotator: int, column: str) -> bool:
    # A cell may hold two votes of one person: "0, 1".
    return "1" in record.get(f"Annotator{annotator}_{column}", "")


def sms(part: Part, body: bytes) -> Iterator[Draft]:
    """One message a line after a head line: ham or spam, a tab, the text. The id is the line's number from 0."""
    for number, line in enumerate(body.decode("utf-8-sig").split("\n")):
        word, tab, text = line.partition("\t")
        if tab and word in ("ham", "spam"):
            yield Draft(str(number), text, "spam_scam" if word == "spam" else None)


def youtube(part: Part, body: bytes) -> Iterator[Draft]:
    """Comments below one video."""
    for record in _csv(body):
        policy = "spam_scam" if record["CLASS"] == "1" else None
        yield Draft(record["COMMENT_ID"], record["CONTENT"].replace("\ufeff", ""), policy, part.split)


def multidogo(part: Part, body: bytes) -> Iterator[Draft]:
    """Customers' turns of five words or more that hold no contact slot."""
    for number, record in enumerate(csv.DictReader(_text(body), delimiter="\t", quoting=csv.QUOTE_NONE)):
        slots, text = record["slot-labels"], record["utterance"]
        if len(text.split()) >= _FEWEST_WORDS and not any(word in slots for word in _CONTACT):
            turn = f"{record['conversationId']}-{record['turnNumber']}"
            yield Draft(f"{part.name}-{turn}-{number}", text, None, part.split)


def banking77(part: Part, body: bytes) -> Iterator[Draft]:
    """Customers' questions to a bank; the id is the record's number from 0."""
    for number, record in enumerate(_csv(body)):
        yield Draft(f"{part.name}-{number}", record["text"], None, part.split)


def _csv(body: bytes) -> Iterator[Mapping[str, str]]:
    return csv.DictReader(_text(body))


def _text(body: bytes) -> io.StringIO:
    return io.StringIO(body.decode("utf-8-sig"), newline="")
