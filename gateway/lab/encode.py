"""Rows as token ids: the serving prompt, then the answer tokens. One rendering for training, validation and serving."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gateway.core.prompts import Prompt, to_text
from gateway.lab.rows import LabError

_SCAN = 512
"""Rows whose lengths are sorted together: short rows share a batch, and the order stays random beyond it."""


class Example(NamedTuple):
    """A prompt's token ids and the answer that should follow, one to two tokens."""

    prompt: list[int]
    answer: list[int]


class Batch(NamedTuple):
    """Right-padded ids (B, T), the positions (B, K) whose next token is an answer token, and targets (B, K).

    A target of -100 is not counted.
    """

    ids: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor


class AnswerTokens(NamedTuple):
    """The single tokens that a model answers with; `details` are second tokens (policies), `end` closes a turn."""

    labels: Mapping[str, int]
    details: Mapping[str, int]
    end: int

    def answer(self, label: str, detail: str | None) -> list[int]:
        """Target tokens: the label, then the policy where known, or the end of the turn for a label without one."""
        if detail is not None and detail in self.details:
            return [self.labels[label], self.details[detail]]
        return [self.labels[label], self.end]


def answer_tokens(
    tokenizer: Any, prompt: Prompt, chat_format: str, labels: Mapping[str, str], details: Mapping[str, str]
) -> AnswerTokens:
    """Token ids of the answers, each checked to be one extra token behind a rendered prompt. Raises LabError."""
    before = render(prompt, {}, chat_format)
    known = ids_of(tokenizer, before)

    def one(text: str) -> int:
        after = ids_of(tokenizer, before + text)
        if after[:-1] != known:
            raise LabError(f"the answer {text!r} is not exactly one token behind the prompt")
        return after[-1]

    ids = {k: one(v) for k, v in labels.items()}
    if len(set(ids.values())) < len(ids):
        raise LabError(f"the labels {sorted(labels)} are not distinct tokens")
    return AnswerTokens(ids, {k: one(v) for k, v in details.items()}, int(tokenizer.eos_token_id))


def render(prompt: Prompt, values: Mapping[str, object], chat_format: str) -> str:
    """The very text that serving sends for this input."""
    return to_text(prompt.messages(values), chat_format)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids without any token that the text does not spell out."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def common_prefix(examples: Sequence[Example]) -> list[int]:
    """The longest run of leading tokens that all prompts share."""
    low, high = min(e.prompt for e in examples), max(e.prompt for e in examples)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)) - 1)
    return low[:length]


def batches(examples: Sequence[Example], skip: int, max_tokens: int, seed: int | None) -> list[list[int]]:
    """Indices of the rows of each batch, at most `max_tokens` padded tokens behind a prefix of `skip` tokens.

    With a seed the batches stand in random order; without one, all rows are sorted by length (for scoring).
    """
    order = list(range(len(examples)))
    rng = random.Random(seed)
    window = len(order)
    if seed is not None:
        rng.shuffle(order)
        window = _SCAN
    found: list[list[int]] = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda i: len(examples[i].prompt))
        found += _packed(part, examples, skip, max_tokens)
    if seed is not None:
        rng.shuffle(found)
    return found


def collate(examples: Sequence[Example], skip: int) -> Batch:
    """The rows of a batch behind a shared prefix of `skip` tokens: the last answer token is never an input."""
    rows = [(e.prompt + e.answer[:-1])[skip:] for e in examples]
    width, answers = max(map(len, rows)), max(len(e.answer) for e in examples)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    at = torch.zeros(len(rows), answers, dtype=torch.long)
    targets = torch.full((len(rows), answers), -100, dtype=torch.long)
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        for k, token in enumerate(example.answer):
            at[i, k] = len(example.prompt) - skip - 1 + k
            targets[i, k] = token
    return Batch(ids, at, targets)


def _packed(order: Sequence[int], examples: Sequence[Example], skip: int, max_tokens: int) -> list[list[int]]:
    found: list[list[int]] = []
    for i in order:
        width = len(examples[i].prompt) + len(examples[i].answer) - 1 - skip
        if found and width * (len(found[-1]) + 1) <= max_tokens:
            found[-1].append(i)
        else:
            found.append([i])
    return found
