"""What single fields of a task cannot say: do they fit together?"""

from collections.abc import Iterator

from gateway.core.cascade import negative_label
from gateway.core.problems import Problem, did_you_mean
from gateway.core.task import ChainStage, CnnStage, Fallback, RulesStage, Stage, Task


def labels_of(task: Task) -> set[str]:
    """The labels that an item can get: those of the chain stages, or what the actions and `positive` name."""
    named = {label for stage in task.stage if isinstance(stage, ChainStage) for label in stage.labels}
    if named:
        return named
    positive = {task.positive} if task.positive is not None else set()
    return positive | (set(task.actions) - {"deferred"})


def contradictions(task: Task, file: str) -> Iterator[Problem]:
    """Every place where the task's fields contradict each other."""
    if not task.stage:
        yield Problem(file, "stage", "a task needs at least one [[stage]]")
    names = [stage.name for stage in task.stage]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(file, "stage", f"two stages are called `{name}`")
    for i, stage in enumerate(task.stage):
        yield from _in_stage(task, stage, file, f"stage[{i}]")
    if task.actions and "deferred" not in task.actions:
        hint = "say what happens to an item that nobody could decide"
        yield Problem(file, "actions.deferred", "this key is missing", hint)
    for label in sorted(labels_of(task) - set(task.actions)) if task.actions else ():
        yield Problem(file, f"actions.{label}", "this key is missing", "every label needs an action")
    if task.review is not None and not task.actions:
        yield Problem(file, "review", "a task without [actions] holds nothing for review")


def _in_stage(task: Task, stage: Stage, file: str, place: str) -> Iterator[Problem]:
    labels = labels_of(task)
    for label in sorted(set(stage.decides or ()) - labels):
        hint = did_you_mean(label, labels)
        yield Problem(file, f"{place}.decides", f"no chain stage or action knows the label `{label}`", hint)
    if isinstance(stage, RulesStage):
        return
    below, above = stage.accept_below, stage.accept_above
    if below is not None and above is not None and below > above:
        yield Problem(file, f"{place}.accept_below", "lies above accept_above: one score would have two labels")
    if below is not None and negative_label(task) is None:
        hint = "name `positive` and two labels"
        yield Problem(file, f"{place}.accept_below", "means the other label of a task with two", hint)
    if isinstance(stage, CnnStage) and below is None and above is None:
        yield Problem(file, place, "this stage can never decide", "set accept_below, accept_above or both")
    if isinstance(stage, ChainStage):
        yield from _in_chain(task, stage, file, place)


def _in_chain(task: Task, stage: ChainStage, file: str, place: str) -> Iterator[Problem]:
    if stage.answer != "label":
        yield from _without_label(task, stage, file, place)
    elif len(stage.labels) < 2:
        yield Problem(file, f"{place}.labels", "a label answer needs at least two labels")
    if task.positive is not None and stage.labels and task.positive not in stage.labels:
        yield Problem(file, f"{place}.labels", f"the positive label `{task.positive}` has no token")
    for key, tokens in (("labels", stage.labels), ("policies", stage.policies)):
        if len(set(tokens.values())) < len(tokens):
            yield Problem(file, f"{place}.{key}", "two names share a token")
    for name in sorted(set(stage.policies) - set(task.policy)):
        yield Problem(file, f"{place}.policies", f"there is no [policy.{name}]", did_you_mean(name, task.policy))
    if stage.answer == "label" and task.positive is not None and stage.accept_above is None:
        yield Problem(file, f"{place}.accept_above", "this key is missing: the score would decide nothing")
    for j, other in enumerate(stage.fallback):
        yield from _in_fallback(stage, other, file, f"{place}.fallback[{j}]")
    if stage.deadline_s < stage.timeout_s:
        yield Problem(file, f"{place}.deadline_s", "is shorter than timeout_s: not even one try would fit")


def _in_fallback(stage: ChainStage, other: Fallback, file: str, place: str) -> Iterator[Problem]:
    if other.model == stage.model and other.adapter == stage.adapter:
        yield Problem(file, f"{place}.model", "is the stage's own model: where that cannot answer, it cannot either")
    if stage.calibration is not None and other.calibration is None:
        hint = "calibrate this model too: thresholds are probabilities, and its raw scores are none"
        yield Problem(file, f"{place}.calibration", "this key is missing", hint)
    if stage.answer != "label" and other.calibration is not None:
        yield Problem(file, f"{place}.calibration", f'means nothing for answer = "{stage.answer}"', "leave it out")


def _without_label(task: Task, stage: ChainStage, file: str, place: str) -> Iterator[Problem]:
    """An answer of text or JSON has neither label nor score, so nothing that speaks of them has a meaning."""
    of_labels = ("labels", "policies", "calibration", "decides", "accept_below", "accept_above")
    for key in of_labels:
        if getattr(stage, key):
            yield Problem(file, f"{place}.{key}", f'means nothing for answer = "{stage.answer}"', "leave it out")
    if task.actions or task.positive is not None:
        hint = "an action and a score are for labels: leave out [actions] and `positive`"
        yield Problem(file, f"{place}.answer", f"{stage.answer} has no label, but the task speaks of labels", hint)
