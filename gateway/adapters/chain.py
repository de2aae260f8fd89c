"""The one door to LangChain's chains: the chain stage, `prompt | model | parser`, built once and run per item."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from msgspec import Struct
from pydantic import ConfigDict

from gateway.adapters.calibration import UNCALIBRATED, Platt, label_logprobs, log_odds, softmax
from gateway.adapters.label_ids import LabelIds
from gateway.adapters.model_port import ASK, Ask, Reply, reply_of, unobserved
from gateway.core.cascade import Finding, StageFailed
from gateway.core.meter import Meter
from gateway.core.prompts import Message, Prompt, to_text
from gateway.core.task import ChainStage


class Turns(PromptValue):
    """A rendered prompt: text in the model's chat format for LLMs, messages for chat models."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    turns: tuple[Message, ...]
    chat_format: str

    def to_string(self) -> str:
        """The bytes that training used too."""
        return to_text(self.turns, self.chat_format)

    def to_messages(self) -> list[BaseMessage]:
        """The same turns without a chat format; empty ones are left out, as in the text."""
        kinds = {"system": SystemMessage, "user": HumanMessage}
        return [kinds[turn.role](content=turn.content) for turn in self.turns if turn.content]


class StagePrompt(BasePromptTemplate[Turns]):
    """A prompt file as the first link of a chain."""

    prompt: Any
    chat_format: str

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> PromptValue:
        """Render an item."""
        return self._render(input) if unobserved(config) else await super().ainvoke(input, config, **kwargs)

    def format_prompt(self, **kwargs: Any) -> PromptValue:
        """Render the item that `kwargs` are."""
        return self._render(kwargs)

    def format(self, **kwargs: Any) -> Any:
        """The rendered item."""
        return self._render(kwargs)

    def _render(self, item: Mapping[str, Any]) -> Turns:
        return Turns.model_construct(turns=self.prompt.messages(item), chat_format=self.chat_format)


def stage_prompt(prompt: Prompt, chat_format: str) -> StagePrompt:
    """All variables are optional: what an item lacks is empty in the prompt."""
    return StagePrompt(
        input_variables=[], optional_variables=sorted(prompt.variables), prompt=prompt, chat_format=chat_format
    )


class LabelRules(Struct, frozen=True, kw_only=True):
    """How a label answer is read. `positive` is None for tasks of many equal labels."""

    tokens: LabelIds
    positive: str | None = None
    calibration: Platt = UNCALIBRATED
    min_label_mass: float = 0.0
    accept_above: float | None = None


class LabelParser(Runnable[Any, Finding]):
    """The last link of a chain that answers with a label: a model's output → a Finding."""

    def __init__(self, rules: LabelRules) -> None:
        self._rules = rules

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """Raises StageFailed where there is no label to be read."""
        return read_label(reply_of(input), self._rules)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Finding:
        """The same; it is too short for a thread."""
        return self.invoke(input)


def read_label(reply: Reply, rules: LabelRules) -> Finding:
    """Score the first position of a reply; name the policy by its second token."""
    if not reply.positions:
        raise StageFailed("model_answer_invalid", "no log-probabilities")
    found = label_logprobs(reply.positions[0], rules.tokens.labels)
    if found.mass < rules.min_label_mass:
        raise StageFailed("low_label_mass", f"the labels hold {found.mass:.3f} of the probability", found.mass)
    if rules.positive is not None:
        score = rules.calibration.score(log_odds(found.by_label, rules.positive))
        return Finding(score=score, label_mass=found.mass, output=_policies(reply, rules))
    label, score = max(softmax(found.by_label).items(), key=lambda pair: pair[1])
    if rules.accept_above is not None and score < rules.accept_above:
        return Finding(score=score, label_mass=found.mass, reason="unsure")
    return Finding(label=label, score=score, label_mass=found.mass)


def _policies(reply: Reply, rules: LabelRules) -> dict[str, Any]:
    """The policy is known only where the model went on from the positive label."""
    if not rules.tokens.policies:
        return {}
    said = [position.chosen.key for position in reply.positions[:2]]
    named = len(said) == 2 and rules.tokens.labels.get(said[0]) == rules.positive and said[1] in rules.tokens.policies
    return {"policies": [rules.tokens.policies[said[1]]] if named else []}


class ChainRunner:
    """Runs a chain on items, within the stage's bounds."""

    def __init__(self, stage: ChainStage, variables: frozenset[str], chain: Runnable[Any, Finding]) -> None:
        self._stage = stage
        self._variables = variables
        self._chain = chain

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Ask the model about an item. Raises StageFailed, BudgetExceeded and Unavailable."""
        if self._length(item) > self._stage.max_input_chars:
            return Finding(reason="input_too_long")
        deadline = asyncio.get_running_loop().time() + self._stage.deadline_s
        restore = ASK.set(Ask(meter, self._stage.timeout_s, deadline, self._stage.retries))
        try:
            return await self._chain.ainvoke(dict(item))
        finally:
            ASK.reset(restore)

    def _length(self, item: Mapping[str, Any]) -> int:
        """Characters of the fields that the prompt shows."""
        values = (item[name] for name in self._variables if item.get(name) is not None)
        return sum(len(v if isinstance(v, str) else msgspec.json.encode(v)) for v in values)
