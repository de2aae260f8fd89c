"""`lab curve`: the AUC of the tuned LLM by the number of rows it was tuned on. Resumable, a folder per number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from gateway.adapters import causal_lm
from gateway.core.prompts import parse_prompt
from gateway.lab.encode import Example, answer_tokens
from gateway.lab.evaluate import write_json
from gateway.lab.metrics import Interval, macro_auc
from gateway.lab.mix import Mix, moderation_mix
from gateway.lab.moderation import CHAT_FORMAT, LABELS, POLICIES, PROMPT, encode_rows
from gateway.lab.prompted import by_source
from gateway.lab.readings import prompt_text
from gateway.lab.report import CurvePoint, plot_learning_curve
from gateway.lab.rows import Row, rows_hash
from gateway.lab.trainers import LlmPlan, llm_scorer
from gateway.lab.tune import tune

SIZES = (1000, 3000, 10_000, 30_000)
RESULT = "curve.json"


def learning_curve(
    plan: LlmPlan, sources: Path, tested: Sequence[Row], out: Path, sizes: Sequence[int] = SIZES
) -> list[CurvePoint]:
    """Tune on the first 1,000, 3,000 … rows of one shuffled mix and measure each on `tested` (macro mean of AUCs within
    sources). A size beyond the mix becomes the whole mix. Raises LabError.
    """
    mix = moderation_mix(sources, plan.corpus, plan.mix)
    examples = _examples(plan, mix)
    points: list[CurvePoint] = []
    for size in sorted({min(size, len(examples)) for size in sizes}):
        points.append((size, _point(plan, mix, examples[:size], tested, out / str(size))))
        write_json(out / RESULT, points)
    plot_learning_curve(points, out / "learning_curve.png")
    return points


def _point(plan: LlmPlan, mix: Mix, examples: Sequence[Example], tested: Sequence[Row], run: Path) -> Interval:
    kept = run / "auc.json"
    tested_sha256 = rows_hash(tested)
    if kept.exists():
        result = msgspec.json.decode(kept.read_bytes(), type=dict[str, Interval])
        if tested_sha256 in result:
            return result[tested_sha256]
    if not (run / "adapter" / "training.json").exists():
        facts = {"prompt": PROMPT, "data_sha256": mix.data_hash, "rows": len(examples)}
        tune(plan.config, plan.base, examples, run, facts, _unwatched)
    scores = llm_scorer(plan, run / "adapter", run / "readings")(tested)
    truth = np.array([row.label == "violation" for row in tested])
    found = macro_auc(by_source(tested, truth, scores))
    write_json(kept, {tested_sha256: found})
    return found


def _examples(plan: LlmPlan, mix: Mix) -> list[Example]:
    prompt = parse_prompt(PROMPT, prompt_text(plan.home, PROMPT))
    tokenizer = causal_lm.load_tokenizer(plan.base)
    tokens = answer_tokens(tokenizer, prompt, CHAT_FORMAT, LABELS, POLICIES)
    return encode_rows(tokenizer, prompt, tokens, mix.train)


def _unwatched(_: torch.nn.Module) -> Mapping[str, float]:
    return {}
