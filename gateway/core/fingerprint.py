"""Which version of a task gave an answer: a hash of everything that shapes answers, and of nothing else."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.cache import canonical_json
from gateway.core.prompts import Prompt
from gateway.core.task import ChainStage, CnnStage, Model, RulesStage, Stage, Task

# Part of every fingerprint: raise it when the code itself comes to answer differently for the same configuration.
ENGINE_VERSION = 1

_PATIENCE = {"timeout_s", "deadline_s", "retries", "hedge_after_s"}


def fingerprint(task: Task, folder: Path, prompts: Mapping[str, Prompt], models: Mapping[str, Model]) -> str:
    """16 hex digits over stages and thresholds, schemas, rules, weights, calibration, adapter, prompts, chain.py,
    actions, severities and the models' ids. Replica URLs, quotas, prices and deadlines for people are not in it.
    """
    digest = hashlib.sha256(f"engine {ENGINE_VERSION}\n".encode())
    severities = {name: policy.severity for name, policy in task.policy.items()}
    stages = [_shape(stage) for stage in task.stage]
    digest.update(canonical_json((stages, task.positive, task.actions, severities)))
    for name in sorted(files_that_shape(task, folder)):
        digest.update(f"\n{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}".encode())
    for stage in task.stage:
        if isinstance(stage, ChainStage):
            digest.update(msgspec.json.encode((prompts[stage.prompt], *(_identity(models[m]) for m in stage.models))))
    return digest.hexdigest()[:16]


def model_fingerprint(model: Model) -> str:
    """16 hex digits over what shapes the answers of a model that is asked without a task."""
    return hashlib.sha256(msgspec.json.encode((ENGINE_VERSION, _identity(model)))).hexdigest()[:16]


def config_hash(task: Task, models: Mapping[str, Model]) -> str:
    """16 hex digits over everything that is declared for the task and the models it uses."""
    used = {name: models[name] for stage in task.stage if isinstance(stage, ChainStage) for name in stage.models}
    return hashlib.sha256(canonical_json(msgspec.to_builtins((task, used)))).hexdigest()[:16]


def files_that_shape(task: Task, folder: Path) -> set[str]:
    """Names of the files of the task's folder whose content shapes its answers."""
    return {task.input, task.output, *(name for stage in task.stage for name in shaping_files(folder, stage))}


def files_of(stage: Stage) -> Iterator[tuple[str, str]]:
    """(key, file name) of each file that a stage's declaration names."""
    match stage:
        case RulesStage():
            yield "file", stage.file
        case CnnStage():
            yield "weights", stage.weights
        case ChainStage():
            if stage.calibration is not None:
                yield "calibration", stage.calibration
            for i, other in enumerate(stage.fallback):
                if other.calibration is not None:
                    yield f"fallback[{i}].calibration", other.calibration


def _identity(model: Model) -> tuple[str | None, ...]:
    return (model.kind, model.model_id, model.revision, model.adapter, model.chat_format)


def _shape(stage: Stage) -> dict[str, Any]:
    """A stage's declaration without what decides only how long an answer may take, and without models it lacks."""
    declared: dict[str, Any] = msgspec.to_builtins(stage)
    return {key: value for key, value in declared.items() if key not in _PATIENCE and (value or key != "fallback")}


def shaping_files(folder: Path, stage: Stage) -> Iterator[str]:
    """The named files, and those that stand beside them by convention."""
    yield from (name for _, name in files_of(stage))
    beside = [Path(stage.weights).with_suffix(".json").name] if isinstance(stage, CnnStage) else []
    if isinstance(stage, ChainStage):
        beside = ["chain.py", *(str(path.relative_to(folder)) for path in folder.glob("adapter/*"))]
    yield from (name for name in beside if (folder / name).is_file())
