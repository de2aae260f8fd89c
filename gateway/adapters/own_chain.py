"""`chain.py` in a task's folder, the escape hatch: a team's own code between the prompt and the model.

It runs inside the gateway, with everything that the gateway may do; who can put a file there is trusted like who can
change the gateway. What it cannot do is call the model unmetered: the model that it is given counts every request.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from langchain_core.runnables import Runnable
from msgspec import Struct

from gateway.adapters.turns import StagePrompt
from gateway.core.loaded import StageFiles
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.task import ChainStage

FILE = "chain.py"


class ChainParts(Struct, frozen=True):
    """The `stage` of `build(stage, model)`: its declaration, and its prompt file as a runnable from item to prompt.

    For answers of JSON, `json_model` is the model as it is asked without a chain.py: from prompt to a dict that the
    output schema allows, mended once.
    """

    declared: ChainStage
    prompt: StagePrompt
    json_model: Runnable[Any, dict[str, Any]] | None = None


def own_chain(files: StageFiles, parts: ChainParts, model: Runnable[Any, Any]) -> Runnable[Any, Any] | None:
    """What the folder's `build` makes; None where there is no chain.py. Raises InvalidConfig."""
    path = files.folder / FILE
    if not path.is_file():
        return None
    file = f"tasks/{files.task_name}/{FILE}"
    try:
        chain = _module(path, files.task_name).build(parts, model)
    except Exception as error:
        message = f"building the chain raised {type(error).__name__}: {error}"
        raise InvalidConfig([Problem(file, "build", message, "it is called as build(stage, model)")]) from error
    if not isinstance(chain, Runnable):
        raise InvalidConfig([Problem(file, "build", "must return a LangChain Runnable")])
    return chain


def _module(path: Path, task: str) -> ModuleType:
    """The file as a module of its own, fresh for every content: a reload must not get what was loaded before."""
    source = path.read_bytes()
    name = f"gateway_task_{task.replace('-', '_')}_{hashlib.sha256(source).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[name] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module
