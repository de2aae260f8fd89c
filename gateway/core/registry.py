"""tasks/ + prompts/ + models.toml → Registry, or every problem at once."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from gateway.core import cache
from gateway.core.cascade import Runner, Step, negative_label
from gateway.core.config import construct, read_toml
from gateway.core.errors import UnknownTask
from gateway.core.meter import MeteredModel
from gateway.core.prices import Tariff
from gateway.core.problems import InvalidConfig, Problem, did_you_mean
from gateway.core.prompts import CHAT_FORMATS, Prompt, parse_prompt
from gateway.core.quotas import Limit, limit_of
from gateway.core.task import ChainStage, CnnStage, Example, Model, RulesStage, Stage, Task

# Part of every fingerprint: raise it when the code itself comes to answer differently for the same configuration.
ENGINE_VERSION = 1

_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
_PROMPT_NAME = re.compile(r"^[a-z0-9_-]+/[a-z0-9_-]+\.v[1-9][0-9]*$")


class Validator(Protocol):
    """A compiled JSON schema."""

    def violations(self, value: object) -> Sequence[tuple[str, str]]:
        """(JSON path, message) of each violation; empty for a valid value."""


class StageFiles(Struct, frozen=True):
    """What a stage may look at while it is built. `folder` is the task's own."""

    task_name: str
    task: Task
    folder: Path
    prompt: Prompt | None = None
    model: "LoadedModel | None" = None


class Builder(Protocol):
    """Builds what configuration speaks of; the adapters stand behind it. Raises InvalidConfig with all problems."""

    def schema(self, document: Any, file: str) -> Validator:
        """Compile a JSON schema."""

    def stage(self, stage: Stage, files: StageFiles, place: str) -> Runner:
        """Build a stage; `place` is its path in task.toml, for problems."""


class LoadedModel(Struct, frozen=True):
    """An entry of models.toml, with its tariff. `folder` is the home that its paths are relative to."""

    name: str
    declared: Model
    tariff: Tariff
    folder: Path

    @property
    def metered(self) -> MeteredModel:
        """What the meter needs of it."""
        return MeteredModel(self.name, self.tariff)


class LoadedTask(Struct, frozen=True):
    """A task that is ready to answer."""

    name: str
    declared: Task
    steps: tuple[Step, ...]
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    input: Validator
    output: Validator
    limits: tuple[Limit, ...]
    examples: tuple[Example, ...]
    fingerprint: str
    config_hash: str


class Registry(Struct, frozen=True):
    """All tasks and models of one moment. Replaced whole, never changed."""

    tasks: Mapping[str, LoadedTask]
    models: Mapping[str, LoadedModel]

    def task(self, name: str) -> LoadedTask:
        """Raises UnknownTask, with a near miss where there is one."""
        if (found := self.tasks.get(name)) is None:
            raise UnknownTask(f"There is no task `{name[:80]}`. {did_you_mean(name[:80], self.tasks)}".strip())
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
        loaded = _Loading(home, folder, prompts, models, builder, problems).task()
        if loaded is not None:
            tasks[folder.name] = loaded
    if problems:
        raise InvalidConfig(problems)
    return Registry(tasks, models)


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


class _Loading:
    """One task folder on its way to a LoadedTask; collects problems as it goes."""

    def __init__(
        self,
        home: Path,
        folder: Path,
        prompts: Mapping[str, Prompt],
        models: Mapping[str, LoadedModel],
        builder: Builder,
        problems: list[Problem],
    ) -> None:
        self.home, self.folder = home, folder
        self.prompts, self.models = prompts, models
        self.builder, self.problems = builder, problems
        self.file = f"tasks/{folder.name}/task.toml"

    def task(self) -> LoadedTask | None:
        before = len(self.problems)
        if not _NAME.match(self.folder.name):
            self._say("", "a task's name is lower case letters, digits, - and _, and begins with a letter")
        if not (self.folder / "task.toml").is_file():
            self._say("", "this file is missing", "a task is a folder with a task.toml")
            return None
        raw = read_toml((self.folder / "task.toml").read_bytes(), self.file, self.problems)
        task = construct(Task, raw, self.file, "", self.problems) if raw is not None else None
        if task is None:
            return None
        input_schema, input_validator = self._schema(task.input, "input")
        output_schema, output_validator = self._schema(task.output, "output")
        limits = self._limits(task)
        self._check_meaning(task)
        steps = tuple(self._steps(task, input_schema))
        examples = tuple(self._examples(task, input_validator))
        if len(self.problems) > before or input_validator is None or output_validator is None:
            return None
        return LoadedTask(
            self.folder.name, task, steps, input_schema, output_schema, input_validator, output_validator, limits,
            examples, self._fingerprint(task), self._config_hash(task),
        )  # fmt: skip

    def _say(self, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, path, message, hint))

    def _schema(self, name: str, path: str) -> tuple[dict[str, Any], Validator | None]:
        if (text := self._read(name, path)) is None:
            return {}, None
        file = f"tasks/{self.folder.name}/{name}"
        try:
            document = json.loads(text)
        except ValueError as error:
            self.problems.append(Problem(file, "", f"this is not JSON: {error}"))
            return {}, None
        try:
            return document, self.builder.schema(document, file)
        except InvalidConfig as error:
            self.problems.extend(error.problems)
            return {}, None

    def _read(self, name: str, path: str) -> bytes | None:
        """A file of the task's own folder; paths that leave it are refused."""
        target = (self.folder / name).resolve()
        if not target.is_relative_to(self.folder.resolve()):
            self._say(path, f"`{name}` lies outside the task's folder")
        elif not target.is_file():
            near = did_you_mean(name, (p.name for p in self.folder.iterdir() if p.is_file()))
            self._say(path, f"there is no file `{name}` in the task's folder", near)
        else:
            return target.read_bytes()
        return None

    def _limits(self, task: Task) -> tuple[Limit, ...]:
        limits = []
        for i, quota in enumerate(task.quota):
            try:
                limits.append(limit_of(quota))
            except ValueError as error:
                self._say(f"quota[{i}]", str(error))
        return tuple(limits)

    def _steps(self, task: Task, input_schema: dict[str, Any]) -> Iterator[Step]:
        for i, stage in enumerate(task.stage):
            place = f"stage[{i}]"
            before = len(self.problems)
            prompt, model = None, None
            if isinstance(stage, ChainStage):
                prompt, model = self._chain_parts(stage, place, input_schema)
            for key, name in _files_of(stage):
                self._read(name, f"{place}.{key}")
            if len(self.problems) > before:
                continue
            try:
                files = StageFiles(self.folder.name, task, self.folder, prompt, model)
                yield Step(stage, self.builder.stage(stage, files, place))
            except InvalidConfig as error:
                self.problems.extend(error.problems)

    def _chain_parts(
        self, stage: ChainStage, place: str, input_schema: dict[str, Any]
    ) -> tuple[Prompt | None, LoadedModel | None]:
        prompt, model = self.prompts.get(stage.prompt), self.models.get(stage.model)
        if model is None:
            self._say(
                f"{place}.model",
                f"there is no model `{stage.model}` in models.toml",
                did_you_mean(stage.model, self.models),
            )
        if prompt is None:
            self._say(
                f"{place}.prompt", f"there is no prompt `{stage.prompt}`", did_you_mean(stage.prompt, self.prompts)
            )
        else:
            fields = input_schema.get("properties", {})
            for variable in sorted(prompt.variables - set(fields)):
                self.problems.append(
                    Problem(
                        f"prompts/{prompt.name}.md",
                        f"{{{{{variable}}}}}",
                        "the input schema has no such field",
                        did_you_mean(variable, fields),
                    )
                )
        return prompt, model

    def _check_meaning(self, task: Task) -> None:
        """What single fields cannot say: do they fit together?"""
        if not task.stage:
            self._say("stage", "a task needs at least one [[stage]]")
        names = [stage.name for stage in task.stage]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._say("stage", f"two stages are called `{name}`")
        for i, stage in enumerate(task.stage):
            self._check_stage(task, stage, f"stage[{i}]")
        if task.actions and "deferred" not in task.actions:
            self._say("actions.deferred", "this key is missing", "say what happens to an item that nobody could decide")
        for name, policy in task.policy.items():
            self._read(policy.text, f"policy.{name}.text")

    def _check_stage(self, task: Task, stage: Stage, place: str) -> None:
        labels = _labels(task)
        for label in sorted(set(stage.decides or ()) - labels):
            self._say(
                f"{place}.decides", f"no chain stage or action knows the label `{label}`", did_you_mean(label, labels)
            )
        if isinstance(stage, RulesStage):
            return
        if (
            stage.accept_above is not None
            and stage.accept_below is not None
            and stage.accept_below > stage.accept_above
        ):
            self._say(f"{place}.accept_below", "lies above accept_above: one score would have two labels")
        if stage.accept_below is not None and negative_label(task) is None:
            self._say(f"{place}.accept_below", "means the other label of a task with two, one of them `positive`")
        if isinstance(stage, CnnStage) and stage.accept_above is None and stage.accept_below is None:
            self._say(place, "this stage can never decide", "set accept_below, accept_above or both")
        if isinstance(stage, ChainStage):
            self._check_chain(task, stage, place)

    def _check_chain(self, task: Task, stage: ChainStage, place: str) -> None:
        if stage.answer == "label" and len(stage.labels) < 2:
            self._say(f"{place}.labels", "a label answer needs at least two labels")
        if task.positive is not None and stage.labels and task.positive not in stage.labels:
            self._say(f"{place}.labels", f"the positive label `{task.positive}` has no token")
        for kind, tokens in (("labels", stage.labels), ("policies", stage.policies)):
            if len(set(tokens.values())) < len(tokens):
                self._say(f"{place}.{kind}", "two names share a token")
        for name in sorted(set(stage.policies) - set(task.policy)):
            self._say(f"{place}.policies", f"there is no [policy.{name}]", did_you_mean(name, task.policy))
        if stage.deadline_s < stage.timeout_s:
            self._say(f"{place}.deadline_s", "is shorter than timeout_s: not even one try would fit")

    def _examples(self, task: Task, validator: Validator | None) -> Iterator[Example]:
        path = self.folder / "examples.jsonl"
        file = f"tasks/{self.folder.name}/examples.jsonl"
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
            place = f"line {number}"
            try:
                example = msgspec.json.decode(line, type=Example)
            except msgspec.MsgspecError as error:
                self.problems.append(Problem(file, place, str(error)))
                continue
            for where, message in validator.violations(example.input) if validator else ():
                self.problems.append(Problem(file, f"{place}: {where}", message))
            if example.label not in _labels(task):
                self.problems.append(Problem(file, place, f"unknown label `{example.label}`"))
            yield example

    def _fingerprint(self, task: Task) -> str:
        """What shapes an answer and nothing else: see DESIGN's word list. URLs, quotas and prices are not in it."""
        digest = hashlib.sha256(f"engine {ENGINE_VERSION}\n".encode())
        shape = (
            task.stage,
            task.positive,
            sorted(task.actions.items()),
            sorted((n, p.severity) for n, p in task.policy.items()),
        )
        digest.update(msgspec.json.encode(msgspec.to_builtins(shape), order="sorted"))
        for name in sorted(
            {task.input, task.output, *(n for s in task.stage for _, n in _shaping_files(self.folder, s))}
        ):
            digest.update(f"\n{name} {hashlib.sha256((self.folder / name).read_bytes()).hexdigest()}".encode())
        for stage in task.stage:
            if isinstance(stage, ChainStage):
                prompt, model = self.prompts[stage.prompt], self.models[stage.model].declared
                part = (prompt, model.kind, model.model_id, model.revision, model.adapter, model.chat_format)
                digest.update(msgspec.json.encode(part))
        return digest.hexdigest()[:16]

    def _config_hash(self, task: Task) -> str:
        """Everything declared for the task and the models it uses."""
        models = {s.model: self.models[s.model].declared for s in task.stage if isinstance(s, ChainStage)}
        return hashlib.sha256(cache.canonical_json(msgspec.to_builtins((task, models)))).hexdigest()[:16]


def _labels(task: Task) -> set[str]:
    chain_labels = {label for stage in task.stage if isinstance(stage, ChainStage) for label in stage.labels}
    named = chain_labels or {task.positive} - {None} | (set(task.actions) - {"deferred"})
    return {label for label in named if label is not None}


def _files_of(stage: Stage) -> Iterator[tuple[str, str]]:
    """(key, file name) of each file that a stage's declaration names."""
    match stage:
        case RulesStage():
            yield "file", stage.file
        case CnnStage():
            yield "weights", stage.weights
        case ChainStage() if stage.calibration is not None:
            yield "calibration", stage.calibration


def _shaping_files(folder: Path, stage: Stage) -> Iterator[tuple[str, str]]:
    """The named files, and those that stand beside them by convention and shape answers too."""
    yield from _files_of(stage)
    if isinstance(stage, CnnStage):
        sidecar = Path(stage.weights).with_suffix(".json").name
        if (folder / sidecar).is_file():
            yield "weights", sidecar
    if isinstance(stage, ChainStage):
        yield from (("adapter", str(p.relative_to(folder))) for p in sorted(folder.glob("adapter/*")) if p.is_file())
        if (folder / "chain.py").is_file():
            yield "chain", "chain.py"
