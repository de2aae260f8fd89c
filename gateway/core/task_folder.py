"""One folder in tasks/ on its way to a LoadedTask. Problems are collected, and reading goes on as far as it can."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.core.cascade import Step
from gateway.core.config import construct, read_toml
from gateway.core.fingerprint import config_hash, files_of, fingerprint
from gateway.core.loaded import Builder, LoadedModel, LoadedTask, StageFiles, Validator
from gateway.core.meaning import contradictions, labels_of
from gateway.core.problems import InvalidConfig, Problem, did_you_mean
from gateway.core.prompts import Prompt
from gateway.core.quotas import Limit, limit_of
from gateway.core.task import ChainStage, Example, Stage, Task
from gateway.core.versions import describe

_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")


class TaskFolder:
    """Reads one task. Every mistake goes to `problems`."""

    def __init__(
        self,
        folder: Path,
        prompts: Mapping[str, Prompt],
        models: Mapping[str, LoadedModel],
        builder: Builder,
        problems: list[Problem],
    ) -> None:
        self._folder, self._prompts, self._models = folder, prompts, models
        self._builder, self._problems = builder, problems
        self._place = f"tasks/{folder.name}"
        self._file = f"{self._place}/task.toml"

    def load(self) -> LoadedTask | None:
        """The task, or None where there was any problem."""
        before = len(self._problems)
        if (task := self._declaration()) is None:
            return None
        input_schema, input_validator = self._schema(task.input, "input")
        output_schema, output_validator = self._schema(task.output, "output")
        self._problems.extend(contradictions(task, self._file))
        policy_texts = {
            name: text.decode("utf-8", "replace")
            for name, policy in task.policy.items()
            if (text := self._read(policy.text, f"policy.{name}.text")) is not None
        }
        limits = tuple(self._limits(task))
        given = StageFiles(self._folder.name, task, self._folder, output_schema=output_schema, output=output_validator)
        steps = tuple(self._steps(given, input_schema))
        examples = tuple(self._examples(task, input_validator))
        if len(self._problems) > before or input_validator is None or output_validator is None:
            return None
        models = {name: model.declared for name, model in self._models.items()}
        return LoadedTask(
            name=self._folder.name,
            declared=task,
            steps=steps,
            input_schema=input_schema,
            output_schema=output_schema,
            input=input_validator,
            output=output_validator,
            limits=limits,
            examples=examples,
            fingerprint=fingerprint(task, self._folder, self._prompts, models),
            config_hash=config_hash(task, models),
            config=describe(task, self._folder, self._prompts, models),
            policy_texts=policy_texts,
        )

    def _declaration(self) -> Task | None:
        if not _NAME.match(self._folder.name):
            self._say("", "a task's name is lower case letters, digits, - and _, and begins with a letter")
        path = self._folder / "task.toml"
        if not path.is_file():
            self._say("", "this file is missing", "a task is a folder with a task.toml")
            return None
        raw = read_toml(path.read_bytes(), self._file, self._problems)
        return None if raw is None else construct(Task, raw, self._file, "", self._problems)

    def _say(self, path: str, message: str, hint: str = "") -> None:
        self._problems.append(Problem(self._file, path, message, hint))

    def _read(self, name: str, path: str) -> bytes | None:
        """A file of the task's own folder; paths that leave it are refused."""
        target = (self._folder / name).resolve()
        if not target.is_relative_to(self._folder.resolve()):
            self._say(path, f"`{name}` lies outside the task's folder")
        elif not target.is_file():
            near = did_you_mean(name, (p.name for p in self._folder.iterdir() if p.is_file()))
            self._say(path, f"there is no file `{name}` in the task's folder", near)
        else:
            return target.read_bytes()
        return None

    def _schema(self, name: str, path: str) -> tuple[dict[str, Any], Validator | None]:
        if (text := self._read(name, path)) is None:
            return {}, None
        file = f"{self._place}/{name}"
        try:
            document = json.loads(text)
            return document, self._builder.schema(document, file)
        except ValueError as error:
            self._problems.append(Problem(file, "", f"this is not JSON: {error}"))
        except InvalidConfig as error:
            self._problems.extend(error.problems)
        return {}, None

    def _limits(self, task: Task) -> Iterator[Limit]:
        for i, quota in enumerate(task.quota):
            try:
                yield limit_of(quota)
            except ValueError as error:
                self._say(f"quota[{i}]", str(error))

    def _steps(self, given: StageFiles, input_schema: Mapping[str, Any]) -> Iterator[Step]:
        for i, stage in enumerate(given.task.stage):
            place = f"stage[{i}]"
            before = len(self._problems)
            for key, name in files_of(stage):
                self._read(name, f"{place}.{key}")
            files = self._parts(given, stage, place, input_schema)
            if len(self._problems) > before:
                continue
            try:
                yield Step(stage, self._builder.stage(stage, files, place))
            except InvalidConfig as error:
                self._problems.extend(error.problems)

    def _parts(self, given: StageFiles, stage: Stage, place: str, input_schema: Mapping[str, Any]) -> StageFiles:
        prompt, model, others = None, None, tuple[LoadedModel, ...]()
        if isinstance(stage, ChainStage):
            prompt, model = self._prompts.get(stage.prompt), self._model(stage.model, f"{place}.model")
            named = [self._model(f.model, f"{place}.fallback[{i}].model") for i, f in enumerate(stage.fallback)]
            others = tuple(each for each in named if each is not None)
            if prompt is None:
                near = did_you_mean(stage.prompt, self._prompts)
                self._say(f"{place}.prompt", f"there is no prompt `{stage.prompt}`", near)
            else:
                self._check_variables(prompt, input_schema.get("properties", {}))
        return replace(given, prompt=prompt, model=model, fallback=others)

    def _model(self, name: str, path: str) -> LoadedModel | None:
        if (model := self._models.get(name)) is None:
            near = did_you_mean(name, self._models)
            self._say(path, f"there is no model `{name}` in models.toml", near)
        return model

    def _check_variables(self, prompt: Prompt, fields: Mapping[str, Any]) -> None:
        for variable in sorted(prompt.variables - set(fields)):
            file, near = f"prompts/{prompt.name}.md", did_you_mean(variable, fields)
            message = f"the input schema of `{self._folder.name}` has no such field"
            self._problems.append(Problem(file, f"{{{{{variable}}}}}", message, near))

    def _examples(self, task: Task, validator: Validator | None) -> Iterator[Example]:
        path = self._folder / "examples.jsonl"
        file, labels = f"{self._place}/examples.jsonl", labels_of(task)
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
            place = f"line {number}"
            try:
                example = msgspec.json.decode(line, type=Example)
            except msgspec.MsgspecError as error:
                self._problems.append(Problem(file, place, str(error)))
                continue
            for where, message in validator.violations(example.input) if validator else ():
                self._problems.append(Problem(file, f"{place}: {where}", message))
            if example.label is None and labels:
                self._problems.append(Problem(file, place, "this example has no label", did_you_mean("", labels)))
            elif example.label is not None and example.label not in labels:
                near = did_you_mean(example.label, labels)
                self._problems.append(Problem(file, place, f"unknown label `{example.label}`", near))
            yield example
