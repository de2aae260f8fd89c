"""Tuning the message-moderation adapter: prompt, answer tokens, mix and validation handed to the trainer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from gateway.adapters import causal_lm
from gateway.core.prompts import Prompt, parse_prompt
from gateway.lab.encode import AnswerTokens, Example, answer_tokens, ids_of, render
from gateway.lab.mix import MixConfig, moderation_mix
from gateway.lab.rows import CORPUS, MARKETPLACE_DEV, Row
from gateway.lab.tune import TuneConfig, label_margins, tune

LABELS: Mapping[str, str] = {"clean": "A", "violation": "B"}
POLICIES: Mapping[str, str] = {
    "abuse": "C", "sexual": "D", "spam_scam": "E", "off_platform": "F", "partnership": "G", "job_seeking": "H",
}  # fmt: skip
PROMPT = "message-moderation/classify.v1"
CHAT_FORMAT = "chatml"


def tune_moderation(
    config: TuneConfig,
    mix_config: MixConfig,
    base: Path,
    prompts: Path,
    sources: Path,
    corpus: Path,
    out: Path,
    start: Path | None = None,
) -> Path:
    """Build the mix and train, or go on where a run with the same arguments stopped. Returns the adapter folder.

    `start` is an adapter to begin with. Raises LabError, ModelFilesError.
    """
    prompt = parse_prompt(PROMPT, (prompts / f"{PROMPT}.md").read_text())
    tokenizer = causal_lm.load_tokenizer(base)
    tokens = answer_tokens(tokenizer, prompt, CHAT_FORMAT, LABELS, POLICIES)
    mix = moderation_mix(sources, corpus, mix_config)
    validation = encode_rows(tokenizer, prompt, tokens, mix.validation)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        return source_aucs(mix.validation, label_margins(model, validation, tokens, "violation"))

    facts: dict[str, Any] = {
        "prompt": PROMPT, "mix": msgspec.to_builtins(mix_config), "data_sha256": mix.data_hash,
        "rows_seen": mix.counts(), "absent_sources": mix.absent,
    }  # fmt: skip
    return tune(config, base, encode_rows(tokenizer, prompt, tokens, mix.train), out, facts, validate, start)


def encode_rows(tokenizer: Any, prompt: Prompt, tokens: AnswerTokens, rows: Sequence[Row]) -> list[Example]:
    """Each row as the prompt that serving would send and the answer that the policy wants."""
    return [
        Example(ids_of(tokenizer, render(prompt, model_input(row), CHAT_FORMAT)), tokens.answer(row.label, row.policy))
        for row in rows
    ]


def model_input(row: Row) -> dict[str, object]:
    """The task input of a row, as a caller would send it."""
    return {"sender_role": row.sender_role, "message": row.text}


def source_aucs(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, float]:
    """ROC AUC within each source that has both labels, their mean over the public ones, and recall at 15 % false
    positives on the hard negatives of the marketplace's own messages."""
    groups: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        groups[row.source].append((row.label == "violation", score))
    aucs = {
        f"auc/{name}": round(float(roc_auc_score([t for t, _ in pairs], [s for _, s in pairs])), 4)
        for name, pairs in sorted(groups.items())
        if len({t for t, _ in pairs}) == 2
    }
    public = [v for k, v in aucs.items() if k.split("/")[1] not in (CORPUS, MARKETPLACE_DEV)]
    macro = {"auc/macro_public": round(sum(public) / len(public), 4)} if public else {}
    return {**aucs, **macro, **_hard_negative_recall(rows, scores)}


def _hard_negative_recall(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, float]:
    own = [(r, s) for r, s in zip(rows, scores, strict=True) if r.source in (CORPUS, MARKETPLACE_DEV)]
    hard = sorted((s for r, s in own if r.difficulty == "hard_negative"), reverse=True)
    bad = [s for r, s in own if r.label == "violation"]
    if not hard or not bad:
        return {}
    threshold = hard[int(0.15 * len(hard))]
    return {"recall_at_15pct_hard_fp": round(sum(s > threshold for s in bad) / len(bad), 4)}
