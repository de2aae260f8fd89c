"""Harmless messages that differ from each other, as many as anybody wants: the n-th is the same in every run."""

from collections.abc import Iterator, Sequence
from itertools import count
from math import prod

GREETING = ("Hi", "Hello", "Good morning", "Good afternoon", "Hi there", "Thanks", "Thank you", "Hello there")
WORK = (
    "paint the kitchen", "fix the boiler", "replace the tap", "seal the shower", "tile the bathroom",
    "repair the fence", "install the dishwasher", "service the furnace", "trim the hedge", "hang two doors",
    "wire the garage", "sand the floor", "unblock the drain", "assemble a wardrobe", "hang the curtains",
    "build a shelf",
)  # fmt: skip
WHERE = ("upstairs", "downstairs", "at the old house", "in the back", "at my mother's", "next door", "at the front")
DAY = ("on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Saturday", "on Friday", "today")
TIME = ("in the morning", "in the afternoon", "around noon", "before ten", "at three", "at ten", "before five")
QUESTION = (
    "What would it cost?", "How long does it take?", "Do I need to be at home?", "Is the deposit enough?",
    "Would the deposit cover it?", "Is parking a problem?", "Is the quote still valid?",
)  # fmt: skip
# Neither a rule nor the prefilter is sure of these: somebody looks for a job, or only asks about one.
JOB = (
    "Are you looking for someone to join your team?", "I would like to work with your company.",
    "Do you want to be partners and share customers?", "Let us join our businesses and be partners.",
    "My CV is ready, can I work for you as a helper?", "Please join my crew, I pay by the hour.",
)  # fmt: skip

CLEAR = (GREETING, WORK, WHERE, DAY, TIME, QUESTION)
OPEN = (GREETING, WORK, WHERE, DAY, TIME, JOB)
# Prime to the number of messages of both kinds, so that neighbours in the sequence have little in common.
_STRIDE = 100_003


def clear() -> Iterator[str]:
    """Messages that the shipped prefilter decides."""
    return (_message(CLEAR, i) for i in count())


def open_() -> Iterator[str]:
    """Messages that the shipped cheap stages leave to the LLM."""
    return (_message(OPEN, i) for i in count())


def _message(parts: Sequence[Sequence[str]], i: int) -> str:
    n = i * _STRIDE % prod(map(len, parts))
    words = []
    for part in parts:
        n, place = divmod(n, len(part))
        words.append(part[place])
    greeting, work, where, day, time, last = words
    return f"{greeting}, could you {work} {where} {day} {time}? {last}"
