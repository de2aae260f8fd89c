"""Answers that are no labels: text as it was generated, and JSON that the task's output schema allows."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from msgspec import Struct

from gateway.adapters.turns import Turns
from gateway.core.cascade import Finding, StageFailed
from gateway.core.loaded import Validator
from gateway.core.prompts import Message, escape

log = structlog.get_logger()

_REPEATED_CHARS = 2000
_TOLD_VIOLATIONS = 5
_AGAIN = """

An earlier answer was: {said}
It is wrong. {wrong}
Answer again, with one JSON object and nothing else."""


class BadAnswer(Exception):
    """A model's answer that the output schema does not allow, with (JSON path, message) of each mistake."""

    def __init__(self, *violations: tuple[str, str]) -> None:
        super().__init__(f"{len(violations)} violation(s)")
        self.violations = violations


def text_field(schema: Mapping[str, Any]) -> str | None:
    """The one property of an output schema for text answers; None where there is another number, or no string."""
    properties = schema.get("properties", {})
    names = [name for name, declared in properties.items() if declared.get("type") == "string"]
    return names[0] if len(names) == len(properties) == 1 else None


class TextParser(Runnable[Any, Finding]):
    """The last link of a chain that answers with text: the whole of it is the output's one field."""

    def __init__(self, field: str, output: Validator) -> None:
        self._field, self._output = field, output

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """Raises StageFailed where the model said nothing, or what the schema does not allow."""
        text = text_of(input)
        if not text.strip():
            raise StageFailed("model_answer_invalid", "no text")
        found = {self._field: text}
        if violations := self._output.violations(found):
            raise StageFailed("answer_breaks_schema", str(BadAnswer(*violations)))
        return Finding(output=found)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """The same; it is too short for a thread."""
        return self.invoke(input)


class JsonRules(Struct, frozen=True):
    """How a JSON answer is read."""

    output: Validator

    def finding(self, said: str) -> Finding:
        """The object in a text. Raises BadAnswer."""
        value = _object_in(said)
        if violations := self.output.violations(value):
            raise BadAnswer(*violations)
        return Finding(output=value)


class JsonParser(Runnable[Any, Finding]):
    """The last link of a team's own chain that answers with JSON, as an object or as its text."""

    def __init__(self, rules: JsonRules) -> None:
        self._rules = rules

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """Raises StageFailed for what the schema does not allow."""
        said = msgspec.json.encode(input).decode() if isinstance(input, dict) else text_of(input)
        try:
            return self._rules.finding(said)
        except BadAnswer as bad:
            raise StageFailed("answer_breaks_schema", str(bad)) from bad

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """The same; it is too short for a thread."""
        return self.invoke(input)


class JsonModel(Runnable[Any, Finding]):
    """The last link of a chain that answers with JSON: it asks the model and, where the answer is no good, says what
    is wrong and asks once more.

    The schema goes along as a grammar until the server refuses it and takes the same question without one.
    """

    def __init__(self, model: Runnable[Any, Any], rules: JsonRules, schema: Mapping[str, Any]) -> None:
        self._model, self._rules = model, rules
        self._grammar: dict[str, Any] = {"json_schema": dict(schema)}

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """Models are asked with ainvoke only."""
        raise NotImplementedError("the gateway's chains are run with ainvoke only")

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """The finding for a rendered prompt. Raises StageFailed."""
        said = text_of(await self._ask(input, config))
        try:
            return self._rules.finding(said)
        except BadAnswer as bad:
            again = _told(input, said, bad.violations)
        try:
            return self._rules.finding(text_of(await self._ask(again, config)))
        except BadAnswer as bad:
            raise StageFailed("answer_breaks_schema", str(bad)) from bad

    async def _ask(self, turns: Turns, config: RunnableConfig | None) -> Any:
        try:
            return await self._model.ainvoke(turns, config, **self._grammar)
        except StageFailed as failed:
            if failed.reason != "model_refused" or not self._grammar:
                raise
        reply = await self._model.ainvoke(turns, config)
        self._grammar = {}
        log.info("grammar_refused")
        return reply


def output_of(finding: Finding) -> dict[str, Any]:
    """What a finding would have the task answer."""
    return dict(finding.output)


def text_of(output: object) -> str:
    """What a link of a chain said."""
    return str(output.content) if isinstance(output, BaseMessage) else str(output)


def _object_in(said: str) -> dict[str, Any]:
    """From the first brace to the last: models like to put words and fences around what they were asked for."""
    try:
        value = msgspec.json.decode(said[said.index("{") : said.rindex("}") + 1])
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise BadAnswer(("$", "this is not one JSON object")) from None
    assert isinstance(value, dict), "JSON that begins with a brace is an object"
    return value


def _told(turns: Turns, said: str, violations: Sequence[tuple[str, str]]) -> Turns:
    """The same question, with the answer that was given and what is wrong with it, as escaped data."""
    *before, asked = turns.turns
    wrong = "; ".join(f"{path}: {message}" for path, message in violations[:_TOLD_VIOLATIONS])
    told = _AGAIN.format(said=escape(said[:_REPEATED_CHARS]), wrong=escape(wrong))
    return turns.with_turns((*before, Message(asked.role, asked.content + told)))
