"""The OpenAI-compatible door: chat bodies into parameters, answers into completions. Same engine, same prompt bytes."""

from collections.abc import Sequence
from typing import Any

from gateway.core.prompts import CHAT_FORMATS
from gateway.local.llm.jobs import Step
from gateway.local.llm.refusals import Invalid
from gateway.local.llm.wire import (
    ChatBody,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChatTopLogprob,
    Info,
    Parameters,
)

# A chat's finish reasons; an answer that ends by itself "stops".
FINISH = {"eos_token": "stop", "stop_sequence": "stop_sequence", "length": "length"}


def render(messages: Sequence[ChatMessage], chat_format: str) -> str:
    """The prompt's text, ending where the answer begins: the same bytes that `prompts.to_text` makes of these turns."""
    form = CHAT_FORMATS[chat_format]
    turn_end = form.user.partition("{}")[2]
    turns = {"system": form.system, "user": form.user, "assistant": form.answer + "{}" + turn_end}
    # Not str.format: the content may hold braces, and an unfilled template part may too.
    return (
        "".join(turns[m.role].replace("{}", _content(m)) for m in messages if _content(m) or m.role == "user")
        + form.answer
    )


def parameters(body: ChatBody, info: Info) -> Parameters:
    """The generation parameters that TGI derives from a chat body.

    Temperature 0 is greedy, absent samples. `model` names an adapter unless it is "tgi" or the model itself; where an
    adapter has the model's name, the adapter is meant. Raises Invalid for what this server does not have.
    """
    if not body.messages:
        raise Invalid("`messages` cannot be empty")
    if body.tools:
        raise Invalid("`tools` are not supported")
    if body.top_logprobs and not body.logprobs:
        raise Invalid("`logprobs` must be true for `top_logprobs` to be used")
    the_model = {None, "tgi", info.model_id} - info.adapters.keys()
    return Parameters(
        adapter_id=None if body.model in the_model else body.model,
        do_sample=body.temperature is None or body.temperature > 0,
        temperature=body.temperature or None,
        top_p=None if body.top_p == 1.0 else body.top_p,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=body.max_tokens or body.max_completion_tokens,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
        seed=body.seed,
        top_n_tokens=body.top_logprobs if body.logprobs else None,
        grammar=_grammar(body.response_format),
    )


def logprobs(steps: Sequence[Step]) -> ChatLogprobs:
    """Log-probs of tokens: texts only."""
    return ChatLogprobs(
        [ChatLogprob(s.token.text, s.token.logprob, [ChatTopLogprob(t.text, t.logprob) for t in s.top]) for s in steps]
    )


def _grammar(asked: Any) -> dict[str, Any] | None:
    """TGI's `grammar` for an OpenAI `response_format`; plain text is none. Raises Invalid for JSON without a schema."""
    match asked:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return {"type": "json", "value": schema}
    raise Invalid("`response_format` without a JSON schema is not supported")


def _content(message: ChatMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)
