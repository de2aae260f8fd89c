"""Stages that an edit left as they were are used again: a reload for a quota does not read a network anew.

Of rules and prefilters only. A chain is quickly built, on connections that are kept, and a key file that its model
refers to may say something else by now.
"""

import hashlib
from collections.abc import Callable
from weakref import WeakValueDictionary

import msgspec

from gateway.core.cache import canonical_json
from gateway.core.cascade import Runner
from gateway.core.fingerprint import shaping_files
from gateway.core.loaded import StageFiles
from gateway.core.meaning import labels_of
from gateway.core.task import Stage


class Reuse:
    """Runners of the stages that some registry still serves; the others are forgotten with their registry."""

    def __init__(self) -> None:
        self._runners: WeakValueDictionary[str, Runner] = WeakValueDictionary()

    def stage(self, stage: Stage, files: StageFiles, build: Callable[[], Runner]) -> Runner:
        """The runner of an equal stage, or what `build` makes of this one."""
        key = _key(stage, files)
        if (runner := self._runners.get(key)) is None:
            runner = self._runners[key] = build()
        return runner


def _key(stage: Stage, files: StageFiles) -> str:
    """Everything that such a stage is built of."""
    task = files.task
    said = (msgspec.to_builtins(stage), files.task_name, sorted(labels_of(task)), sorted(task.policy), task.positive)
    digest = hashlib.sha256(canonical_json(said))
    for name in sorted(shaping_files(files.folder, stage)):
        digest.update(f"\n{name} {hashlib.sha256((files.folder / name).read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()
