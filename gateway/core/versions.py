"""Versions of a task: what a fingerprint stood for, and what changed between two of them."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from gateway.core.fingerprint import files_that_shape
from gateway.core.prompts import Prompt
from gateway.core.task import ChainStage, Model, Task

_READABLE_BYTES = 64 * 1024


class Version(Struct, frozen=True):
    """One version of a task. `config` is what `describe` said when it was first served."""

    task: str
    fingerprint: str
    first_seen: datetime
    config: dict[str, Any] = {}


class Versions(Protocol):
    """What was ever served."""

    async def of_task(self, task: str) -> Sequence[Version]:
        """Every version of a task, newest first, without `config`. Raises Unavailable."""

    async def find(self, task: str, fingerprint: str) -> Version | None:
        """One version of a task, with its `config`. Raises Unavailable."""


def describe(task: Task, folder: Path, prompts: Mapping[str, Prompt], models: Mapping[str, Model]) -> dict[str, Any]:
    """Everything a fingerprint is the hash of, as JSON for people: the declaration, prompts, models, and every file
    with its SHA-256 and, where it is a text of reasonable size, its words.
    """
    chains = [stage for stage in task.stage if isinstance(stage, ChainStage)]
    return {
        "declaration": msgspec.to_builtins(task),
        "prompts": {stage.prompt: prompts[stage.prompt]._asdict() for stage in chains},
        "models": {name: identity(models[name]) for stage in chains for name in stage.models},
        "files": {name: _file(folder / name) for name in sorted(files_that_shape(task, folder))},
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any], old_name: str, new_name: str) -> str:
    """A unified diff of two descriptions, one line a value; texts are taken apart into their lines. Empty if equal."""
    return "\n".join(difflib.unified_diff(_lines(old), _lines(new), old_name, new_name, n=2, lineterm=""))


def identity(model: Model) -> dict[str, Any]:
    """What of a model shapes answers; where it runs and what it costs do not."""
    return {
        "kind": model.kind,
        "model_id": model.model_id,
        "revision": model.revision,
        "adapter": model.adapter,
        "chat_format": model.chat_format,
    }


def _file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    said: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    if len(content) <= _READABLE_BYTES and b"\0" not in content:
        with suppress(UnicodeDecodeError):
            said["text"] = content.decode()
    return said


def _lines(config: Mapping[str, Any]) -> list[str]:
    return json.dumps(_unfolded(config), indent=2, sort_keys=True, ensure_ascii=False).splitlines()


def _unfolded(value: Any) -> Any:
    """Texts of several lines as lists of lines: a diff then shows the line that changed."""
    match value:
        case dict():
            return {key: _unfolded(item) for key, item in value.items()}
        case list() | tuple():
            return [_unfolded(item) for item in value]
        case str() if "\n" in value:
            return value.splitlines()
    return value
