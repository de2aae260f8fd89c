"""The gate: artifacts go live only with a report that is theirs, and that clears the task's bars.

`[gate] accuracy` is no bar of the report: it is the floor for the task's examples, which `check --online` runs.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.loaded import LoadedTask
from gateway.core.problems import Problem
from gateway.core.task import Gate

REPORT = "metrics.json"

_Bar = Callable[[Mapping[str, Any]], Any]
_BARS: Mapping[str, tuple[str, _Bar]] = {
    "auc": ("AUC of the fine-tuned LLM, macro mean within sources", lambda m: m["systems"]["tuned"]["auc"]["value"]),
    "recall": ("recall of the prefilter, lower bound", lambda m: m["cascade"]["prefilter_recall_lower_bound"]),
}


def gate_problems(task: LoadedTask, folder: Path) -> list[Problem]:
    """Why this task may not be promoted: every bar of `[gate]` that its metrics.json misses. Empty without bars."""
    gate = task.declared.gate
    if gate is None or all(getattr(gate, name) is None for name in _BARS):
        return []
    return list(_problems(task, gate, folder / REPORT))


def _problems(task: LoadedTask, gate: Gate, path: Path) -> Iterator[Problem]:
    place = f"tasks/{task.name}/{REPORT}"
    hint = f"run `gateway lab reproduce --task {task.name} --write`"
    try:
        metrics: Any = msgspec.json.decode(path.read_bytes())
        fingerprint = metrics["about"]["task_fingerprint"]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        yield Problem(place, "", f"there is no usable report of these artifacts: {error}", hint)
        return
    if fingerprint != task.fingerprint:
        message = f"the report is of version {fingerprint}, the artifacts are of {task.fingerprint}"
        yield Problem(place, "about.task_fingerprint", message, hint)
    for name, (title, read) in _BARS.items():
        if (bar := getattr(gate, name)) is not None:
            yield from _missed(place, name, title, bar, metrics, read)


def _missed(place: str, name: str, title: str, bar: float, metrics: Any, read: _Bar) -> Iterator[Problem]:
    try:
        value = read(metrics)
    except (KeyError, TypeError):
        value = None
    # Not `value < bar`: a NaN must not pass.
    if not (isinstance(value, int | float) and value >= bar):
        shown = "not reported" if value is None else f"{value:.4f}"
        yield Problem(place, f"gate.{name}", f"{title} is {shown}; the bar is {bar}", "train again, or move the bar")
