"""From a declared chain stage to a running one: every reference resolved, every label checked, problems all at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import Any

from langchain_core.runnables import Runnable, RunnableLambda
from msgspec import Struct
from msgspec.structs import replace

from gateway.adapters.answers import JsonModel, JsonParser, JsonRules, TextParser, output_of, text_field
from gateway.adapters.calibration import UNCALIBRATED, Platt, read_calibration
from gateway.adapters.chain import ChainRunner, LabelParser, LabelRules, PromptCount
from gateway.adapters.fallback import Fallback, FallbackRunner
from gateway.adapters.label_ids import LabelIds, by_text, label_ids, probes
from gateway.adapters.model_port import CallFault, NotConnected, within
from gateway.adapters.openai import ChatServer, served_models
from gateway.adapters.own_chain import ChainParts, own_chain
from gateway.adapters.references import UnresolvedReference, resolve
from gateway.adapters.replicas import Replicas
from gateway.adapters.tgi import hub_client, served_model, tgi_llm, tokenize
from gateway.adapters.token_files import BadTokenizer, TokenCounter, TokenFile
from gateway.adapters.turns import StagePrompt, stage_prompt
from gateway.adapters.wire import Wire
from gateway.core.cascade import Finding, Runner, StageFailed
from gateway.core.loaded import LoadedModel, StageFiles, Validator
from gateway.core.meter import Meter
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.prompts import to_text
from gateway.core.task import ChainStage, Model
from gateway.core.telemetry import ReplicaState

_VERIFY_TIMEOUT_S = 5.0


class Access(Struct, frozen=True):
    """A model's replicas, with permits and breakers, and the headers that its servers want."""

    replicas: Replicas
    headers: dict[str, str]


class ChainBuilder:
    """Builds chain stages. One per process: connections, permits and breakers are shared by all stages of a model,
    and outlive a reload that does not change the model.
    """

    def __init__(self) -> None:
        self.wire = Wire()
        self.hub = hub_client(self.wire)
        self._accesses: dict[tuple[str, Model, tuple[str, ...]], Access] = {}
        self._token_files: dict[tuple[str, int], TokenFile] = {}

    def build(self, stage: ChainStage, files: StageFiles, place: str) -> Runner:
        """A stage that is ready to run. Raises InvalidConfig with all problems; asks no server."""
        own = _Building(self, stage, files, place)
        if not stage.fallback:
            return own.runner()
        return FallbackRunner(
            [Fallback(stage.model, own.runner()), *self._fallbacks(stage, files, place)], stage.deadline_s
        )

    def _fallbacks(self, stage: ChainStage, files: StageFiles, place: str) -> Iterator[Fallback]:
        """The same stage over each other model."""
        for i, (other, model) in enumerate(zip(stage.fallback, files.fallback, strict=True)):
            named = {"model": other.model, "adapter": other.adapter, "calibration": other.calibration}
            building = _Building(self, replace(stage, **named), replace(files, model=model), f"{place}.fallback[{i}]")
            yield Fallback(other.model, building.runner())

    async def verify(self, model: LoadedModel) -> tuple[str, ...]:
        """Ask each replica which model it serves. What differs from the pinned one, in words; empty if all is well."""
        access = self.access(model, [])
        checks = (self._verify(model.declared, url, access) for url in access.replicas.urls)
        return tuple(said for said in await asyncio.gather(*checks) if said)

    def replica_states(self) -> Iterator[ReplicaState]:
        """The replicas of all models, as they are doing now."""
        now = asyncio.get_running_loop().time()
        for (model, *_), access in self._accesses.items():
            for state in access.replicas.states(now):
                yield ReplicaState(model, *state)

    def urls(self, model: LoadedModel) -> Sequence[str]:
        """Where the replicas of a model are."""
        return self.access(model, []).replicas.urls

    def only(self, model: LoadedModel, url: str) -> AbstractContextManager[None]:
        """Within the block, this replica is asked and no other."""
        return within(only=url, model=model.name)

    def bar(self, model: LoadedModel, url: str, why: str, said_by: str) -> None:
        """Take a replica out, or in again, for all stages."""
        self.access(model, []).replicas.bar(url, why, said_by)

    async def aclose(self) -> None:
        """Close all connections to model servers."""
        await self.hub.exit_stack.aclose()
        await self.wire.aclose()

    def access(self, model: LoadedModel, problems: list[Problem]) -> Access:
        """The way to a model's servers; adds a problem for each reference that points nowhere."""
        declared = model.declared
        urls = tuple(_resolved(url, f"{model.name}.urls", problems) for url in declared.urls)
        key = _resolved(declared.key, f"{model.name}.key", problems) if declared.key else ""
        # Prices are the meter's, and callers the door's; they may change without a new set of connections.
        known = (model.name, replace(declared, price=(), callers=()), (*urls, key))
        if known not in self._accesses:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            self._accesses[known] = Access(Replicas(urls, declared.max_concurrency), headers)
        return self._accesses[known]

    def token_file(self, model: LoadedModel, problems: list[Problem]) -> TokenFile | None:
        """The pinned tokeniser, read once and again where it changed; adds a problem where it is none."""
        if model.declared.tokenizer is None:
            return None
        path = model.folder / model.declared.tokenizer
        # A reload may find another file under the name; one that is not there is TokenFile's to tell.
        state = (str(path), path.stat().st_mtime_ns if path.is_file() else 0)
        try:
            if state not in self._token_files:
                self._token_files[state] = TokenFile(str(path))
        except BadTokenizer:
            place, message = f"{model.name}.tokenizer", "there is no tokeniser in this file"
            problems.append(Problem("models.toml", place, message, "the path is relative to the home folder"))
            return None
        return self._token_files[state]

    async def _verify(self, model: Model, url: str, access: Access) -> str:
        """In words, what is wrong. A replica that serves something else is taken out; one that is away is not.

        TGI names a model as it was started, maybe by a path: another name is told, and only a revision takes it out.
        """
        other = True
        try:
            async with asyncio.timeout(_VERIFY_TIMEOUT_S):
                if model.kind == "openai":
                    wanted = _name_for_chat(model, None)
                    served = await served_models(self.wire, url, access.headers)
                    said = "" if wanted in served else f"does not serve {wanted}"
                else:
                    name, revision = await served_model(self.wire, url, access.headers)
                    said = _other_than(model, name, revision)
                    other = model.revision not in (None, revision)
        except (CallFault, TimeoutError) as error:
            return f"{url} does not say what it serves: {error}"
        access.replicas.bar(url, said if other else "", "its own name")
        return f"{url} {said}" if said else ""


class LateRunner:
    """A stage whose label tokens only the server knows: it is asked at the first item, and never again."""

    def __init__(self, find: Callable[[], Awaitable[LabelIds]], make: Callable[[LabelIds], ChainRunner]) -> None:
        self._find, self._make = find, make
        self._runner: ChainRunner | None = None

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """As ChainRunner's. Raises StageFailed also where the labels are no single tokens of this model."""
        if self._runner is None:
            self._runner = self._make(await self._find())
        return await self._runner.run(item, meter)


class _Building:
    """One stage on its way to a runner; collects problems as it goes."""

    def __init__(self, builder: ChainBuilder, stage: ChainStage, files: StageFiles, place: str) -> None:
        if files.prompt is None or files.model is None:
            raise ValueError("a chain stage is built with its prompt and its model")
        self._builder, self._stage, self._files, self._place = builder, stage, files, place
        self._prompt, self._model, self._declared = files.prompt, files.model, files.model.declared
        self._problems: list[Problem] = []
        self._count: PromptCount | None = None

    def runner(self) -> Runner:
        """Raises InvalidConfig."""
        access = self._builder.access(self._model, self._problems)
        tokens = self._builder.token_file(self._model, self._problems)
        calibration = self._calibration()
        self._check_counts()
        ids = self._offline_ids(tokens) if self._stage.answer == "label" else None
        spoken = self._spoken_field() if self._stage.answer == "text" else None
        if self._problems:
            raise InvalidConfig(self._problems)
        prompt = stage_prompt(self._prompt, self._declared.chat_format)
        model = self._model_link(access, tokens)
        if self._stage.answer == "json":
            return self._chain(self._json_chain(prompt, model))
        first = own_chain(self._files, ChainParts(self._stage, prompt), model)
        own, first = first is not None, first or prompt | model
        # Own code may change the prompt; a JSON answer, above, may be asked for twice.
        self._count = None if own else self._counting(tokens)
        if spoken is not None:
            return self._chain(first | TextParser(spoken, self._output), None if own else spoken)

        def make(ids: LabelIds) -> ChainRunner:
            return self._chain(first | LabelParser(self._rules(ids, calibration)))

        return make(ids) if ids is not None else LateRunner(lambda: self._online_ids(access), make)

    @property
    def _output(self) -> Validator:
        if self._files.output is None:
            raise ValueError("a stage that answers with text or JSON is built with its task's output schema")
        return self._files.output

    def _chain(self, chain: Runnable[Any, Finding], spoken: str | None = None) -> ChainRunner:
        return ChainRunner(self._stage, self._prompt.variables, chain, spoken, self._count)

    def _json_chain(self, prompt: StagePrompt, model: Runnable[Any, Any]) -> Runnable[Any, Finding]:
        rules = JsonRules(self._output)
        asked = JsonModel(model, rules, self._files.output_schema)
        parts = ChainParts(self._stage, prompt, asked | RunnableLambda(output_of))
        own = own_chain(self._files, parts, model)
        return own | JsonParser(rules) if own is not None else prompt | asked

    def _spoken_field(self) -> str | None:
        if (field := text_field(self._files.output_schema)) is None:
            hint = 'for example {"type": "object", "properties": {"text": {"type": "string"}}}'
            self._say("answer", "a text answer needs an output schema with one property, a string", hint)
        return field

    def _say(self, path: str, message: str, hint: str = "") -> None:
        file = f"tasks/{self._files.task_name}/task.toml"
        self._problems.append(Problem(file, f"{self._place}.{path}", message, hint))

    def _text(self) -> str:
        """The prompt of an empty item, as text."""
        return to_text(self._prompt.messages({}), self._declared.chat_format)

    def _counting(self, tokens: TokenFile | None) -> PromptCount | None:
        return (lambda item: tokens.count(self._sent(item))) if tokens is not None else None

    def _filled(self, fill: str) -> str:
        """The prompt with every variable set to `fill`."""
        return self._sent(dict.fromkeys(self._prompt.variables, fill))

    def _sent(self, item: Mapping[str, Any]) -> str:
        """What a door counts the tokens of; a chat server's own template is not in it."""
        turns = self._prompt.messages(item)
        if self._declared.kind == "openai":
            return "".join(turn.content for turn in turns)
        return to_text(turns, self._declared.chat_format)

    def _calibration(self) -> Platt:
        if self._stage.calibration is None:
            return UNCALIBRATED
        if self._files.task.positive is None:
            self._say("calibration", "a calibration is for tasks with a `positive` label")
        try:
            return read_calibration((self._files.folder / self._stage.calibration).read_bytes())
        except (OSError, ValueError) as error:
            file = f"tasks/{self._files.task_name}/{self._stage.calibration}"
            hint = 'write {"method": "platt", "a": 1.0, "b": 0.0}'
            self._problems.append(Problem(file, "", f"this is no calibration: {error}", hint))
            return UNCALIBRATED

    def _check_counts(self) -> None:
        labels, most = len(self._stage.labels), self._declared.max_top_n_tokens
        if labels > most:
            message = f"{labels} labels, but `{self._model.name}` returns at most {most} tokens"
            self._say("labels", message, "raise max_top_n_tokens in models.toml where the server allows it")

    def _offline_ids(self, tokens: TokenFile | None) -> LabelIds | None:
        """None where only the server knows. A pinned tokeniser is asked for chat servers too: labels must be tokens."""
        ids = None
        if tokens is not None:
            pairs = self._probes()
            ids, wrong = label_ids(pairs, {text: tokens.ids(text) for pair in pairs.values() for text in pair})
            for bad in wrong:
                self._say(f"{bad.kind}.{bad.name}", str(bad), "a single letter is one token almost everywhere")
        return by_text(self._stage) if self._declared.kind == "openai" else ids

    async def _online_ids(self, access: Access) -> LabelIds:
        """Raises StageFailed."""
        pairs = self._probes()
        ids = await self._tokenized({text for pair in pairs.values() for text in pair}, access)
        found, wrong = label_ids(pairs, ids)
        if wrong:
            raise StageFailed("label_not_a_token", "; ".join(f"{bad.kind}.{bad.name}: {bad}" for bad in wrong))
        return found

    async def _tokenized(self, texts: set[str], access: Access) -> dict[str, list[int]]:
        fault: CallFault | TimeoutError = NotConnected("there is no replica")
        for url in access.replicas.urls:
            try:
                async with asyncio.timeout(self._stage.timeout_s):
                    return {text: await tokenize(self._builder.wire, url, access.headers, text) for text in texts}
            except (CallFault, TimeoutError) as caught:
                fault = caught
        reason = fault.reason if isinstance(fault, CallFault) else "model_timeout"
        raise StageFailed(reason, str(fault)) from fault

    def _probes(self) -> dict[tuple[str, str], tuple[str, str]]:
        return probes(self._stage, self._text())

    def _model_link(self, access: Access, tokens: TokenFile | None) -> Runnable[Any, Any]:
        counter = TokenCounter(tokens, _common_start(self._filled("x"), self._filled("7")))
        answer_tokens, top = self._answer_tokens()
        if self._declared.kind == "openai":
            return ChatServer(
                model_name=_name_for_chat(self._declared, self._stage.adapter),
                max_tokens=answer_tokens,
                top_logprobs=top,
                wire=self._builder.wire,
                replicas=access.replicas,
                metered=self._model.metered,
                counter=counter,
                headers=access.headers,
            )
        return tgi_llm(
            self._builder.hub,
            self._builder.wire,
            access.replicas,
            self._model.metered,
            counter,
            access.headers,
            max_new_tokens=answer_tokens,
            top_n_tokens=top,
            adapter=self._stage.adapter or self._declared.adapter,
        )

    def _answer_tokens(self) -> tuple[int, int | None]:
        """(most tokens of an answer, alternatives of each); nobody looks at the alternatives of text."""
        if self._stage.answer != "label":
            return self._stage.max_output_tokens, None
        return (2 if self._stage.policies else 1), self._declared.max_top_n_tokens

    def _rules(self, ids: LabelIds, calibration: Platt) -> LabelRules:
        return LabelRules(
            tokens=ids,
            positive=self._files.task.positive,
            calibration=calibration,
            min_label_mass=self._stage.min_label_mass,
            accept_above=self._stage.accept_above,
        )


def _other_than(pinned: Model, model_id: str, revision: str | None) -> str:
    if model_id != pinned.model_id:
        return f"serves {model_id}, not {pinned.model_id}"
    if pinned.revision is not None and revision != pinned.revision:
        return f"serves revision {revision}, not {pinned.revision}"
    return ""


def _name_for_chat(model: Model, adapter: str | None) -> str:
    """Chat servers know an adapter as a model of its own."""
    return adapter or model.adapter or model.model_id


def _common_start(a: str, b: str) -> str:
    return "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _resolved(text: str, place: str, problems: list[Problem]) -> str:
    try:
        return resolve(text)
    except UnresolvedReference as error:
        problems.append(Problem("models.toml", place, str(error), error.hint))
        return text
