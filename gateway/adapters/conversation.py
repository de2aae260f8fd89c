"""A model as teams ask it without a task: their own turns, over chat completions, which TGI speaks too.

The turns go to the model as they are. Escaping what strangers wrote into them is the asking team's business.
"""

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from gateway.adapters.chain_builder import ChainBuilder
from gateway.adapters.model_port import Listener, asking, reply_of
from gateway.adapters.openai import ChatServer
from gateway.adapters.token_files import TokenCounter
from gateway.core.cascade import Finding
from gateway.core.loaded import LoadedModel
from gateway.core.meter import Meter
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.task import ChainStage, Model

_TURNS: Mapping[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
_OPTIONS = ("max_tokens", "temperature", "top_p", "seed", "stop")


class ConversationRunner:
    """Asks the model to go on with the turns of an item. Greedy unless the item has a temperature."""

    def __init__(self, stage: ChainStage, server: ChatServer) -> None:
        self._stage, self._server = stage, server

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """The answer's text and why it ended. Raises StageFailed, BudgetExceeded and Unavailable."""
        turns = [_TURNS[turn["role"]](content=turn["content"]) for turn in item["messages"]]
        options = {name: item[name] for name in _OPTIONS if name in item}
        tell = meter.invocation.listener
        listener = Listener(lambda text: tell({"content": text})) if tell is not None else None
        with asking(self._stage, meter, listener):
            reply = reply_of(await self._server.ainvoke(turns, **options))
        finish = "length" if reply.finish_reason == "length" else "stop"
        return Finding(output={"content": reply.text, "finish_reason": finish})


def build_conversation(builder: ChainBuilder, stage: ChainStage, model: LoadedModel) -> ConversationRunner:
    """Over the connections, permits and breakers that the model's stages share. Raises InvalidConfig."""
    problems: list[Problem] = []
    access, tokens = builder.access(model, problems), builder.token_file(model, problems)
    if problems:
        raise InvalidConfig(problems)
    server = ChatServer(
        model_name=_served_as(model.declared),
        max_tokens=stage.max_output_tokens,
        wire=builder.wire,
        replicas=access.replicas,
        metered=model.metered,
        counter=TokenCounter(tokens, ""),
        headers=access.headers,
    )
    return ConversationRunner(stage, server)


def _served_as(model: Model) -> str:
    """Chat servers know an adapter as a model of its own; TGI takes every name but this one for an adapter."""
    return model.adapter or ("tgi" if model.kind == "tgi" else model.model_id)
