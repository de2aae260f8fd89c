"""Train on a folder of sources, get a scorer: the shape in which `loso` and `curve` see prefilter and LLM."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import structs

from gateway.adapters.prefilter.weights import UnusableWeights, load_prefilter
from gateway.lab.metrics import Floats
from gateway.lab.mix import MixConfig
from gateway.lab.moderation import CHAT_FORMAT, LABELS, POLICIES, PROMPT, tune_moderation
from gateway.lab.readings import Asked, prompt_text, read_all, row_key
from gateway.lab.rows import LabError, Row
from gateway.lab.train_cnn import WEIGHTS, CnnConfig, logits, train_cnn
from gateway.lab.tune import TuneConfig

Scorer = Callable[[Sequence[Row]], Floats]
Trainer = Callable[[Path, Path], Scorer]
"""(folder of sources, run folder) → a scorer; a run that is finished is not trained again."""
_UNREAD = 50.0
"""The logit of a text that the prefilter does not read whole: it passes on, as a violation would."""


class LlmPlan(NamedTuple):
    """What tuning needs besides the sources. `home` holds prompts/."""

    config: TuneConfig
    mix: MixConfig
    base: Path
    home: Path
    corpus: Path


def cnn_trainer(config: CnnConfig) -> Trainer:
    """The prefilter; `sources` and `out` of the configuration are replaced."""

    def train(sources: Path, out: Path) -> Scorer:
        if not (out / WEIGHTS).exists():
            train_cnn(structs.replace(config, sources=str(sources), out=str(out)))
        try:
            prefilter = load_prefilter(out / WEIGHTS)
        except UnusableWeights as error:
            raise LabError(f"{error.file}: {error.message}; {error.hint}") from error

        def score(rows: Sequence[Row]) -> Floats:
            found = np.array(logits(prefilter.network, prefilter.reader, [row.text for row in rows]))
            return np.where(np.isnan(found), _UNREAD, found)

        return score

    return train


def llm_trainer(plan: LlmPlan) -> Trainer:
    """The LLM; a stopped run goes on from its checkpoint."""

    def train(sources: Path, out: Path) -> Scorer:
        adapter = out / "adapter"
        if not (adapter / "training.json").exists():
            tune_moderation(plan.config, plan.mix, plan.base, plan.home / "prompts", sources, plan.corpus, out)
        return llm_scorer(plan, adapter, out / "readings")

    return train


def llm_scorer(plan: LlmPlan, adapter: Path, readings: Path) -> Scorer:
    """Log-odds of a violation by a tuned adapter."""
    asked = Asked(
        base_name=plan.config.base_name, base=plan.base, adapter=adapter, prompt=prompt_text(plan.home, PROMPT),
        chat_format=CHAT_FORMAT, labels=dict(LABELS), policies=dict(POLICIES), positive="violation",
    )  # fmt: skip

    def score(rows: Sequence[Row]) -> Floats:
        read = read_all(asked, rows, readings, threads=plan.config.threads)
        return np.array([read[row_key(row)].margin("violation") for row in rows])

    return score
