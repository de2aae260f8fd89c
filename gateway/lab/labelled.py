"""Tuning a small adapter for any task whose answer is one label: a file of `{"input": …, "label": …}` and a prompt."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from gateway.adapters import causal_lm
from gateway.core.prompts import Prompt, parse_prompt
from gateway.lab.encode import AnswerTokens, Example, answer_tokens, ids_of, render
from gateway.lab.rows import CALIBRATION_SHARE, LabError, read_jsonl, unit
from gateway.lab.tune import TuneConfig, label_logits, tune


class LabelledInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file: a task input as a caller would send it, and the label that it should get."""

    input: dict[str, Any]
    label: str


class LabelledTask(NamedTuple):
    """Where the prompt is (`prompts`/`prompt`.md), how it is framed, and each label's answer."""

    prompts: Path
    prompt: str
    labels: Mapping[str, str]
    chat_format: str = "chatml"


ROUTER_LABELS: Mapping[str, str] = {
    "home_repair": "A", "cleaning": "B", "moving": "C", "outdoor": "D", "events": "E", "lessons": "F", "pets": "G",
    "business_services": "H",
}  # fmt: skip
ROUTER_PROMPT = "service-router/classify.v1"
ROUTER_CONFIG = TuneConfig(
    rank=4, alpha=16, from_layer=18, learning_rate=2e-3, max_tokens=512, epochs=8, detail_weight=0.0
)


def tune_labelled(config: TuneConfig, task: LabelledTask, data: Path, base: Path, out: Path) -> Path:
    """Train on nine tenths of `data` (by hash), validate on the rest; returns the adapter folder. Resumable.

    Raises LabError for a label without an answer, a line of another shape, or a file with fewer than two labels.
    """
    rows = read_labelled(data, task.labels)
    prompt = parse_prompt(task.prompt, (task.prompts / f"{task.prompt}.md").read_text())
    tokenizer = causal_lm.load_tokenizer(base)
    tokens = answer_tokens(tokenizer, prompt, task.chat_format, task.labels, {})
    held = [row for row in rows if _key(row) < CALIBRATION_SHARE]
    train = [row for row in rows if _key(row) >= CALIBRATION_SHARE]

    def validate(model: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(model, encode_inputs(tokenizer, prompt, tokens, held, task.chat_format), tokens)}

    facts = {"prompt": task.prompt, "rows": len(train), "validation_rows": len(held), "data_sha256": _hash(rows)}
    return tune(config, base, encode_inputs(tokenizer, prompt, tokens, train, task.chat_format), out, facts, validate)


def read_labelled(path: Path, labels: Mapping[str, str]) -> list[LabelledInput]:
    """The lines of the file, every label known."""
    rows = list(read_jsonl(path, LabelledInput))
    unknown = {row.label for row in rows} - labels.keys()
    if unknown:
        raise LabError(f"{path}: labels without an answer: {', '.join(sorted(unknown))}; known: {', '.join(labels)}")
    if len({row.label for row in rows}) < 2:
        raise LabError(f"{path}: fewer than two labels in {len(rows)} rows")
    return rows


def encode_inputs(
    tokenizer: Any, prompt: Prompt, tokens: AnswerTokens, rows: Sequence[LabelledInput], chat_format: str
) -> list[Example]:
    """Each input as the prompt that serving would send, and its label as the answer."""
    return [
        Example(ids_of(tokenizer, render(prompt, row.input, chat_format)), tokens.answer(row.label, None))
        for row in rows
    ]


def accuracy(model: torch.nn.Module, examples: Sequence[Example], tokens: AnswerTokens) -> float:
    """Share of examples whose likeliest label token is the right one."""
    if not examples:
        return 0.0
    ids = list(tokens.labels.values())
    chosen = label_logits(model, examples, tokens).argmax(1).tolist()
    right = sum(bool(ids[c] == e.answer[0]) for c, e in zip(chosen, examples, strict=True))
    return round(right / len(examples), 4)


def _key(row: LabelledInput) -> float:
    return unit(msgspec.json.encode(row.input, order="deterministic").decode(), "split")


def _hash(rows: Sequence[LabelledInput]) -> str:
    return hashlib.sha256(msgspec.json.encode(rows, order="deterministic")).hexdigest()
