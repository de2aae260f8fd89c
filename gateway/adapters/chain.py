"""The one door to LangChain's chains: the chain stage, `prompt | model | parser`, built once and run per item."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langchain_core.runnables.config import ensure_config, get_async_callback_manager_for_config, patch_config
from msgspec import Struct

from gateway.adapters.calibration import UNCALIBRATED, Platt, label_logprobs, log_odds, softmax
from gateway.adapters.label_ids import LabelIds
from gateway.adapters.model_port import Listener, Reply, asking, reply_of
from gateway.core.cascade import Finding, StageFailed
from gateway.core.meter import Meter
from gateway.core.task import ChainStage


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


async def answer_of(chain: Runnable[Any, Finding], item: dict[str, Any]) -> Finding:
    """What a chain makes of an item. Where no tracer listens, the links of a sequence are called one after the other:
    LangChain's own way makes a run and a task of each, which costs more than the links.
    """
    config = ensure_config()
    callbacks = get_async_callback_manager_for_config(config)
    if callbacks.handlers or not isinstance(chain, RunnableSequence):
        return await chain.ainvoke(item)
    unheard, value = patch_config(config, callbacks=callbacks), item
    for link in chain.steps:
        value = await link.ainvoke(value, unheard)
    return cast(Finding, value)


# A validated input → tokens of its prompt.
PromptCount = Callable[[Mapping[str, Any]], int]


class ChainRunner:
    """Runs a chain on items, within the stage's bounds.

    `spoken` is the field of the output that the model's text becomes as it is: whoever listens to the invocation hears
    it while it is generated. `count` counts the tokens of an item's prompt, where that can be known before it is sent.
    """

    def __init__(
        self,
        stage: ChainStage,
        variables: frozenset[str],
        chain: Runnable[Any, Finding],
        spoken: str | None = None,
        count: PromptCount | None = None,
    ) -> None:
        self._stage = stage
        self._variables = variables
        self._chain = chain
        self._spoken = spoken
        self._count = count

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Ask the model about an item. Raises StageFailed, BudgetExceeded and Unavailable."""
        if self._length(item) > self._stage.max_input_chars:
            return Finding(reason="input_too_long")
        listener = self._listener(meter)
        try:
            with asking(self._stage, meter, listener):
                return await answer_of(self._chain, dict(item))
        except StageFailed as failed:
            failed.begun = listener is not None and listener.heard
            raise

    def prompt_tokens(self, item: Mapping[str, Any]) -> int | None:
        """Tokens of the prompt that an item would be sent as, 0 for one that is too long to be sent; None where only
        the server, or the task's own code, knows.
        """
        if self._count is None:
            return None
        return self._count(item) if self._length(item) <= self._stage.max_input_chars else 0

    def _listener(self, meter: Meter) -> Listener | None:
        spoken, listener = self._spoken, meter.invocation.listener
        if spoken is None or listener is None:
            return None
        return Listener(lambda text: listener({spoken: text}))

    def _length(self, item: Mapping[str, Any]) -> int:
        """Characters of the fields that the prompt shows."""
        values = (item[name] for name in self._variables if item.get(name) is not None)
        return sum(len(v if isinstance(v, str) else msgspec.json.encode(v)) for v in values)
