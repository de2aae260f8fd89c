"""The first link of every chain: a prompt file that renders an item into turns."""

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict

from gateway.adapters.model_port import unobserved
from gateway.core.prompts import Message, Prompt, to_text


class Turns(PromptValue):
    """A rendered prompt: text in the model's chat format for LLMs, messages for chat models."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    turns: tuple[Message, ...]
    chat_format: str

    def to_string(self) -> str:
        """The bytes that training used too."""
        return to_text(self.turns, self.chat_format)

    def to_messages(self) -> list[BaseMessage]:
        """The same turns without a chat format; an empty system turn is left out, as in the text."""
        kinds = {"system": SystemMessage, "user": HumanMessage}
        return [kinds[turn.role](content=turn.content) for turn in self.turns if turn.content or turn.role == "user"]

    def with_turns(self, turns: tuple[Message, ...]) -> "Turns":
        """Other turns, in the same format."""
        return turns_of(turns, self.chat_format)


def turns_of(turns: tuple[Message, ...], chat_format: str) -> Turns:
    """Turns of known types: nothing is checked again."""
    return Turns.model_construct(turns=turns, chat_format=chat_format)


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
        return turns_of(self.prompt.messages(item), self.chat_format)


def stage_prompt(prompt: Prompt, chat_format: str) -> StagePrompt:
    """All variables are optional: what an item lacks is empty in the prompt."""
    return StagePrompt(
        input_variables=[], optional_variables=sorted(prompt.variables), prompt=prompt, chat_format=chat_format
    )
