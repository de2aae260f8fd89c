"""`lab simulate`: what another recall of the prefilter would cost, before anything is applied.

Works on an evaluation's predictions: nothing is read or trained again, and the cascade itself decides.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct, structs

from gateway.core.cascade import Finding, StageFailed
from gateway.core.task import ChainStage, CnnStage, Stage
from gateway.lab.calibrate import threshold_for_recall
from gateway.lab.metrics import PRODUCTION_PREVALENCE, Operating, operating
from gateway.lab.predictions import Prediction, decided, read_predictions
from gateway.lab.routing import Cascade, cascade_facts
from gateway.lab.rows import LabError
from gateway.lab.systems import Loaded, decide, load_task, with_thresholds


class Simulation(Struct, frozen=True, kw_only=True):
    """The threshold that proves the recall on these rows, and what the cascade would do with it."""

    target: float
    threshold: float
    recall_lower_bound: float
    cascade: Cascade
    operating: Operating


def simulate(home: Path, task: str, run: Path, recall: float, prevalence: float = PRODUCTION_PREVALENCE) -> Simulation:
    """`run` is an evaluation's folder. Raises LabError where its violations cannot prove the recall."""
    loaded = load_task(home, task)
    predictions = read_predictions(run / "predictions.jsonl")
    truth = np.array([p.label == loaded.positive for p in predictions])
    scores = [p.cnn for p, t in zip(predictions, truth, strict=True) if t and p.cnn is not None and not p.rules]
    if not scores:
        raise LabError(f"{run}: no violation there has a score of the prefilter")
    promise = threshold_for_recall(scores, recall)
    again = asyncio.run(_decided(loaded, predictions, promise.threshold))
    llm = np.array([p.llm >= (loaded.chain.accept_above or 0.5) for p in again])
    held = np.array([p.cascade.held for p in again])
    return Simulation(
        target=recall,
        threshold=promise.threshold,
        recall_lower_bound=promise.lower_bound,
        cascade=cascade_facts(loaded, again, truth, llm, prevalence),
        operating=operating(truth, held, prevalence),
    )


async def _decided(loaded: Loaded, predictions: Sequence[Prediction], threshold: float) -> list[Prediction]:
    stages = with_thresholds([step.stage for step in loaded.task.steps], prefilter_below=threshold)
    again = []
    for prediction in predictions:
        outcome = await decide(loaded.task.declared, stages, [_found(loaded, stage, prediction) for stage in stages])
        again.append(structs.replace(prediction, cascade=decided(outcome, loaded.positive)))
    return again


def _found(loaded: Loaded, stage: Stage, said: Prediction) -> Finding | StageFailed:
    """A stage's finding, as the predictions keep it."""
    if isinstance(stage, CnnStage):
        return Finding(score=said.cnn, reason="input_too_long" if said.cnn is None else None)
    if isinstance(stage, ChainStage):
        if said.llm_mass < stage.min_label_mass:
            return StageFailed("low_label_mass")
        return Finding(score=said.llm, label_mass=said.llm_mass, output={"policies": list(said.cascade.policies)})
    # A rule file says one label here: the positive one.
    return Finding(label=loaded.positive if said.rules else None, matched=said.rules)
