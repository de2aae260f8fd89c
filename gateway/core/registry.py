"""tasks/ + prompts/ + models.toml → Registry, or every problem at once."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from gateway.core.config import construct, read_toml
from gateway.core.direct import direct_task
from gateway.core.errors import UnknownTask
from gateway.core.loaded import Builder, LoadedModel, LoadedTask, StageFiles, Validator
from gateway.core.prices import Tariff
from gateway.core.problems import InvalidConfig, Problem, did_you_mean
from gateway.core.prompts import CHAT_FORMATS, Prompt, parse_prompt
from gateway.core.task import Model
from gateway.core.task_folder import TaskFolder

__all__ = ["Builder", "LoadedModel", "LoadedTask", "Registry", "StageFiles", "Validator", "load"]

_CALLED = re.compile(r"^[a-z][a-z0-9_-]{0,49}$")
_PROMPT_NAME = re.compile(r"^[a-z0-9_-]+/[a-z0-9_-]+\.v[1-9][0-9]*$")


class Registry(Struct, frozen=True):
    """All tasks and models of one moment. Replaced whole, never changed.

    `direct` are the models that some team may ask without a task, as tasks called `model:<name>`.
    """

    tasks: Mapping[str, LoadedTask]
    models: Mapping[str, LoadedModel]
    direct: Mapping[str, LoadedTask] = {}

    @property
    def every(self) -> Mapping[str, LoadedTask]:
        """All that can be asked."""
        return {**self.tasks, **self.direct}

    def task(self, name: str) -> LoadedTask:
        """Raises UnknownTask, with a near miss where there is one."""
        if (found := self.tasks.get(name) or self.direct.get(name)) is None:
            near = did_you_mean(name[:80], self.tasks) or "none is served"
            raise UnknownTask(f"There is no task `{name[:80]}`; {near}")
        return found


def load(home: Path, builder: Builder) -> Registry:
    """Read everything under `home` (tasks/, prompts/, models.toml). Raises InvalidConfig with every problem."""
    problems: list[Problem] = []
    models = _load_models(home, problems)
    prompts = _load_prompts(home, problems)
    tasks: dict[str, LoadedTask] = {}
    folders = sorted(p for p in (home / "tasks").glob("*") if p.is_dir() and not p.name.startswith((".", "_")))
    if not folders:
        problems.append(Problem("tasks", "", "there is no task", "a task is a folder in tasks/ with a task.toml"))
    for folder in folders:
        loaded = TaskFolder(folder, prompts, models, builder, problems).load()
        if loaded is not None:
            tasks[folder.name] = loaded
    direct = _load_direct(models, builder, problems)
    if problems:
        raise InvalidConfig(problems)
    return Registry(tasks, models, direct)


def load_tariffs(home: Path) -> dict[str, Tariff]:
    """The prices of every model under `home`, and nothing else. Raises InvalidConfig with every problem."""
    problems: list[Problem] = []
    models = _load_models(home, problems)
    if problems:
        raise InvalidConfig(problems)
    return {name: model.tariff for name, model in models.items()}


def _load_direct(
    models: Mapping[str, LoadedModel], builder: Builder, problems: list[Problem]
) -> Mapping[str, LoadedTask]:
    direct = {}
    for model in models.values():
        if not model.declared.callers:
            continue
        try:
            task = direct_task(model, builder)
        except InvalidConfig as error:
            problems.extend(error.problems)
        else:
            direct[task.name] = task
    return direct


def _load_models(home: Path, problems: list[Problem]) -> dict[str, LoadedModel]:
    file = "models.toml"
    if not (home / file).is_file():
        return {}
    models = {}
    for name, raw in (read_toml((home / file).read_bytes(), file, problems) or {}).items():
        if (declared := construct(Model, raw, file, name, problems)) is None:
            continue
        try:
            models[name] = LoadedModel(name, declared, Tariff(declared.price), home)
        except ValueError as error:
            problems.append(Problem(file, f"{name}.price", str(error)))
        problems.extend(_model_problems(name, declared))
    return models


def _model_problems(name: str, model: Model) -> Iterator[Problem]:
    file = "models.toml"
    if model.callers and not _CALLED.match(name):
        message = "a model with callers is a name in the ledger: lower case letters, digits, - and _"
        yield Problem(file, name, message, "it begins with a letter and has at most 50 characters")
    if not model.urls:
        yield Problem(file, f"{name}.urls", "a model needs at least one URL")
    for url in model.urls:
        if not url.startswith(("http://", "https://", "env:")):
            yield Problem(
                file, f"{name}.urls", f"`{url}` is no http(s) URL", "or `env:NAME` for one from the environment"
            )
    if not model.price:
        yield Problem(file, f"{name}.price", "a model needs a price", "write 0 where it really is free")
    if model.chat_format not in CHAT_FORMATS:
        hint = did_you_mean(model.chat_format, CHAT_FORMATS)
        yield Problem(file, f"{name}.chat_format", f"unknown chat format `{model.chat_format}`", hint)
    if model.key is not None and not model.key.startswith(("env:", "file:")):
        yield Problem(
            file, f"{name}.key", "a key is a reference, never the secret itself", "write `env:NAME` or `file:PATH`"
        )


def _load_prompts(home: Path, problems: list[Problem]) -> dict[str, Prompt]:
    prompts = {}
    for path in sorted((home / "prompts").glob("*/*.md")):
        name = f"{path.parent.name}/{path.stem}"
        file = f"prompts/{name}.md"
        if not _PROMPT_NAME.match(name):
            problems.append(
                Problem(file, "", "a prompt file is named <name>.v<N>.md", "prompts are superseded, never edited")
            )
            continue
        try:
            prompts[name] = parse_prompt(name, path.read_text("utf-8"))
        except ValueError as error:
            problems.append(Problem(file, "", str(error)))
    return prompts
