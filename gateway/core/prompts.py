"""Prompt files and how they become the bytes that a model reads.

Training and serving both render through `Prompt.messages` and `to_text`: a model that was tuned on other bytes
than it is asked with is a different model. Source of the chat formats: the models' own published templates.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from gateway.core.text import clean

Role = Literal["system", "user"]
_VARIABLE = re.compile(r"\{\{\s*([a-z_][a-z0-9_]*)\s*\}\}", re.IGNORECASE)
_RULE = re.compile(r"^---[ \t]*$", re.MULTILINE)
_CONTROL = re.compile(r"\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL|AVAILABLE_TOOLS)\b)", re.IGNORECASE)


class ChatFormat(NamedTuple):
    """The text around each turn. The text ends right where the model's answer begins."""

    system: str
    user: str
    answer: str


CHAT_FORMATS: Mapping[str, ChatFormat] = {
    "chatml": ChatFormat(
        "<|im_start|>system\n{}<|im_end|>\n", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n"
    ),
    "llama3": ChatFormat(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "plain": ChatFormat("{}\n\n", "{}\n", ""),
}


class Message(NamedTuple):
    role: Role
    content: str


class Prompt(NamedTuple):
    """A parsed prompt file: a system part and a user part with `{{variables}}`."""

    name: str
    system: str
    user: str

    @property
    def variables(self) -> frozenset[str]:
        """Names of the input's fields that the prompt uses."""
        return frozenset(_VARIABLE.findall(self.system + self.user))

    def messages(self, values: Mapping[str, object]) -> tuple[Message, Message]:
        """Fill the variables in with escaped values. A missing or null value is empty."""
        return Message("system", _fill(self.system, values)), Message("user", _fill(self.user, values))


def parse_prompt(name: str, text: str) -> Prompt:
    """Read a prompt file: the system part, a line `---`, the user part. Raises ValueError with what is wrong."""
    parts = _RULE.split(text)
    if len(parts) != 2:
        raise ValueError(
            f"a prompt has one line `---` between its system and user parts; this one has {len(parts) - 1}"
        )
    system, user = (part.strip() for part in parts)
    if not user:
        raise ValueError("the user part, below `---`, is empty")
    return Prompt(name, system, user)


def to_text(messages: tuple[Message, ...], chat_format: str) -> str:
    """The raw text for servers that take text, in one of `CHAT_FORMATS`. Only a system turn may be left out."""
    form = CHAT_FORMATS[chat_format]
    turns = (getattr(form, m.role).format(m.content) for m in messages if m.content or m.role == "user")
    return "".join(turns) + form.answer


def escape(value: object) -> str:
    """A value as inert data: one line, and no sequence that any chat format reads as a control token."""
    text = clean(value if isinstance(value, str) else str(value))
    return _CONTROL.sub("(", text.replace("<", "‹").replace(">", "›"))


def _fill(template: str, values: Mapping[str, object]) -> str:
    def value(match: re.Match[str]) -> str:
        found = values.get(match.group(1))
        return "" if found is None else escape(found)

    return _VARIABLE.sub(value, template)
