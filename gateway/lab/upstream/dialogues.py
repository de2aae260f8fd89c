"""Sources that were published as JSON."""

from collections.abc import Iterator

import msgspec

from gateway.lab.rows import Side
from gateway.lab.upstream.rows import Draft, Part

_SERVICES = ("Services_", "Homes_")
_CLINC: dict[str, Side] = {
    "oos_val": "test", "val": "test", "train": "train", "oos_test": "test", "test": "test", "oos_train": "train",
}  # fmt: skip
"""The file's keys in its own order: of two equal texts the earlier one stays."""


class _Turn(msgspec.Struct):
    utterance: str


class _Dialogue(msgspec.Struct):
    dialogue_id: str
    services: list[str]
    turns: list[_Turn]


class _Said(msgspec.Struct):
    text: str


def schema_guided(part: Part, body: bytes) -> Iterator[Draft]:
    """Both sides' turns of whole dialogues in which a service or a home is sought."""
    for dialogue in msgspec.json.decode(body, type=list[_Dialogue]):
        if any(service.startswith(_SERVICES) for service in dialogue.services):
            for number, turn in enumerate(dialogue.turns):
                yield Draft(f"{part.name}-{dialogue.dialogue_id}-{number}", turn.utterance, None, part.split)


def nlupp(part: Part, body: bytes) -> Iterator[Draft]:
    """Requests to hotels and banks; the id is the number in the fold from 0."""
    for number, said in enumerate(msgspec.json.decode(body, type=list[_Said])):
        yield Draft(f"{part.name}-{number}", said.text)


def clinc150(part: Part, body: bytes) -> Iterator[Draft]:
    """Requests to an assistant: pairs of text and intent below the name of a split."""
    splits = msgspec.json.decode(body, type=dict[str, list[tuple[str, str]]])
    for name, split in _CLINC.items():
        for number, (text, _) in enumerate(splits[name]):
            yield Draft(f"{name}-{number}", text, None, split)
