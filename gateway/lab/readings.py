"""What a causal LM says where its answer begins, read for many rows at once, and kept so that no row is read twice.

The bytes are those that serving sends (`encode.render`); the first position gives the labels' log-probs, and the one
behind the positive label's token gives the policy, in the same forward pass.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.progress import track

from gateway.adapters import causal_lm
from gateway.adapters.calibration import log_odds
from gateway.adapters.model_port import Position, Reply, Token
from gateway.core.prompts import parse_prompt
from gateway.lab.encode import AnswerTokens, Example, answer_tokens, batches, collate, common_prefix, ids_of, render
from gateway.lab.rows import LabError, Row, read_jsonl

_CHUNK = 256
"""Rows read between two appends to the file: what a stop costs at most."""
_MAX_TOKENS = 4096
"""Padded tokens of a batch, behind the shared prefix."""


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Natural log-probs of the labels at the first position, and what greedy decoding would say there and behind it.

    `said` is None where the likeliest token is no label; `policy` is None where the likeliest token behind the positive
    label is no policy.
    """

    key: str
    labels: dict[str, float]
    said: str | None = None
    policy: str | None = None
    input_tokens: int = 0

    def margin(self, positive: str) -> float:
        """Log-odds of the positive label against the others."""
        return log_odds(self.labels, positive)

    def reply(self) -> Reply:
        """As a model door would hand it over, each token named by what it stands for."""
        top = tuple(Token(label, logprob) for label, logprob in self.labels.items())
        first = Position(Token(self.said or "", self.labels.get(self.said or "", 0.0)), top)
        then = (Position(Token(self.policy, 0.0)),) if self.policy is not None else ()
        return Reply("", (first, *then), self.input_tokens, 1 + len(then))


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which model is asked in which words: everything that a reading depends on, but for the row."""

    base_name: str
    base: Path
    adapter: Path | None
    prompt: str
    chat_format: str
    labels: dict[str, str]
    policies: dict[str, str]
    positive: str

    def fingerprint(self) -> str:
        """16 hex digits over the words, the base's name and the adapter's weights."""
        words = (self.base_name, self.prompt, self.chat_format, self.labels, self.policies)
        digest = hashlib.sha256(msgspec.json.encode(words, order="deterministic"))
        if self.adapter is not None:
            digest.update(_bytes(self.adapter / "adapter_model.safetensors"))
            digest.update(_bytes(self.adapter / "adapter_config.json"))
        return digest.hexdigest()[:16]


def prompt_text(home: Path, name: str) -> str:
    """The text of `prompts/<name>.md`. Raises LabError."""
    return _bytes(home / "prompts" / f"{name}.md").decode()


def row_key(row: Row) -> str:
    """16 hex digits over what the model sees of a row: equal inputs share a reading, whichever set they are in."""
    return input_key(row.sender_role, row.text)


def input_key(sender_role: str, message: str) -> str:
    """`row_key` of a task's input."""
    return hashlib.sha256(msgspec.json.encode((sender_role, message))).hexdigest()[:16]


def read_all(asked: Asked, rows: Sequence[Row], folder: Path, *, threads: int = 1) -> dict[str, Reading]:
    """Readings by `row_key`: those that `folder` has from earlier runs, and new ones, appended as they come.

    Raises LabError for a model that cannot be loaded, or whose answers are not finite numbers: these are not kept.
    """
    file = folder / f"{asked.fingerprint()}.jsonl"
    known = {reading.key: reading for reading in _kept(file)}
    missing = list({row_key(row): row for row in rows if row_key(row) not in known}.values())
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        for fresh in _read(asked, missing, threads, causal_lm.pick_dtype()):
            with file.open("ab") as out:
                out.writelines(msgspec.json.encode(reading) + b"\n" for reading in fresh)
            known.update((reading.key, reading) for reading in fresh)
    return known


def read_anew(asked: Asked, rows: Sequence[Row], dtype: torch.dtype, *, threads: int = 1) -> dict[str, Reading]:
    """Readings by `row_key`, at a precision of one's own; nothing is kept. Raises LabError."""
    unique = list({row_key(row): row for row in rows}.values())
    return {reading.key: reading for chunk in _read(asked, unique, threads, dtype) for reading in chunk}


def _read(asked: Asked, rows: Sequence[Row], threads: int, dtype: torch.dtype) -> Iterator[list[Reading]]:
    torch.set_num_threads(threads)
    prompt = parse_prompt("asked", asked.prompt)
    try:
        tokenizer = causal_lm.load_tokenizer(asked.base)
        model: Any = causal_lm.load_base(asked.base, dtype)
        if asked.adapter is not None:
            model = causal_lm.load_adapter(model, asked.adapter, merge=False)
    except causal_lm.ModelFilesError as error:
        raise LabError(str(error)) from error
    tokens = answer_tokens(tokenizer, prompt, asked.chat_format, asked.labels, asked.policies)
    answer = [tokens.labels[asked.positive], tokens.end]
    texts = [render(prompt, {"sender_role": r.sender_role, "message": r.text}, asked.chat_format) for r in rows]
    examples = [Example(ids_of(tokenizer, text), answer) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(examples[i].prompt))
    chunks = [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]
    for chunk in track(chunks, f"reading {len(rows)} rows with the LLM", disable=len(chunks) < 2):
        read = read_examples(model, [examples[i] for i in chunk], [row_key(rows[i]) for i in chunk], tokens)
        if not all(math.isfinite(logprob) for reading in read for logprob in reading.labels.values()):
            raise LabError(f"{asked.adapter or asked.base}: its answers are not finite numbers: damaged weights")
        yield read


@torch.inference_mode()
def read_examples(
    model: torch.nn.Module,
    examples: Sequence[Example],
    keys: Sequence[str],
    tokens: AnswerTokens,
    max_tokens: int = 4096,
) -> list[Reading]:
    """One reading per example, in their order; the shared beginning of the prompts is run once a batch."""
    prefix = common_prefix(examples) if len(examples) > 1 else examples[0].prompt[:1]
    found: dict[int, Reading] = {}
    for indices in batches(examples, len(prefix), _MAX_TOKENS, None):
        batch = collate([examples[i] for i in indices], len(prefix))
        cache = causal_lm.prefix_cache(model, prefix, len(indices))
        logprobs = causal_lm.logits_at(model, cache, batch.ids, batch.at).log_softmax(-1)
        for row, i in zip(logprobs, indices, strict=True):
            found[i] = Reading(
                key=keys[i],
                labels={name: round(float(row[0, token]), 5) for name, token in tokens.labels.items()},
                said=_said(row[0], tokens.labels),
                policy=_said(row[1], tokens.details),
                input_tokens=len(examples[i].prompt),
            )
    return [found[i] for i in range(len(examples))]


def _said(logprobs: torch.Tensor, ids: Mapping[str, int]) -> str | None:
    likeliest = int(logprobs.argmax())
    return next((name for name, token in ids.items() if token == likeliest), None)


def _kept(file: Path) -> Iterator[Reading]:
    """What an earlier run has kept; a line torn by a stop is dropped, and the file is cut before it."""
    if not file.exists():
        return
    whole, _, torn = _bytes(file).rpartition(b"\n")
    if torn:
        file.write_bytes(whole + b"\n" if whole else b"")
    yield from read_jsonl(file, Reading)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from error
