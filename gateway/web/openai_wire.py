"""OpenAI's chat API on the wire: its bodies, answers, chunks and errors, and how a run is told in them.

Source: OpenAI's API reference for chat completions and models.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.core.direct import is_direct
from gateway.core.errors import GatewayError
from gateway.core.inference import Inference, Usage
from gateway.core.loaded import LoadedTask
from gateway.web.answers import RunMetadata, of_inference
from gateway.web.envelope import invalid
from gateway.web.exchange import Exchange


class TextPart(Struct, frozen=True):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ChatMessage(Struct, frozen=True):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class StreamOptions(Struct, frozen=True):
    """`include_usage`: one more chunk, before the end, with the tokens."""

    include_usage: bool = False


class ChatBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A task reads `model`, the last user message and the stream's options; sampling is for models without a task."""

    model: Annotated[str, Meta(max_length=200)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    user: str | None = None
    n: Literal[1] | None = None


class ChatUsage(Struct, frozen=True):
    """The tokens of the run's model calls; none where it was answered without one."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Struct, frozen=True):
    """The text of a text task, and of any other its output as JSON, with the `action` where there is one."""

    content: str
    role: Literal["assistant"] = "assistant"


class Choice(Struct, frozen=True):
    """The one answer."""

    message: AnswerMessage
    index: int = 0
    finish_reason: str = "stop"
    logprobs: None = None


class Completion(Struct, frozen=True):
    """OpenAI's completion, and in `taskgate` how the decision came about."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    taskgate: RunMetadata
    object: Literal["chat.completion"] = "chat.completion"


class Chunk(Struct, frozen=True):
    """A piece of a streamed completion."""

    id: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: ChatUsage | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class ModelView(Struct, frozen=True):
    """A task as a model, or a model itself."""

    id: str
    owned_by: str
    created: int = 0
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True):
    """The tasks that the caller's team may call, and the models that it may ask without one."""

    data: list[ModelView]
    object: Literal["list"] = "list"


class ErrorBody(Struct, frozen=True):
    """`code` is the gateway's own, as in its problem documents; `param` the JSON path of the first mistake."""

    message: str
    type: str
    code: str
    param: str | None = None
    request_id: str = ""


class ErrorAnswer(Struct, frozen=True):
    """OpenAI's error object."""

    error: ErrorBody


def input_of(task: LoadedTask, body: ChatBody) -> dict[str, Any]:
    """The whole conversation for a model alone, the last user message for a task. Raises InvalidInput."""
    return _conversation(body) if is_direct(task) else _last_message(task, body.messages)


def _conversation(body: ChatBody) -> dict[str, Any]:
    roles = {"developer": "system"}
    turns = [{"role": roles.get(m.role, m.role), "content": _text(m)} for m in body.messages]
    options = {
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
    }
    return {"messages": turns, **{name: value for name, value in options.items() if value is not None}}


def _text(message: ChatMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _last_message(task: LoadedTask, messages: Sequence[ChatMessage]) -> dict[str, Any]:
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    if last is None:
        raise invalid("There is nothing to answer.", ("$.messages", "holds no user message"))
    text = _text(last)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = text
    if isinstance(value, dict):
        return value
    required = task.input_schema.get("required", ())
    if len(required) != 1:
        raise invalid(
            "This task's input is more than a text.", ("$.messages", "the user message must be a JSON object")
        )
    return {required[0]: text}


def is_text(task: LoadedTask) -> bool:
    """Whether the answer is a text, which can be streamed."""
    return getattr(task.declared.stage[-1], "answer", None) == "text"


def words_of(task: LoadedTask, output: Mapping[str, Any]) -> str:
    """The text in the output of a text task, or in a part of it; a model's says besides why it ended."""
    return str(output.get("content", "")) if is_direct(task) else "".join(map(str, output.values()))


def finish_of(task: LoadedTask, inference: Inference) -> str:
    """`length` where a model alone was cut off; a task says nothing of the kind."""
    output = inference.decision.output or {}
    return str(output["finish_reason"]) if is_direct(task) and "finish_reason" in output else "stop"


def content_of(task: LoadedTask, inference: Inference) -> str:
    """The one message that a run answers with."""
    decision = inference.decision
    output: Mapping[str, Any] = decision.output or {}
    if is_text(task):
        return words_of(task, output)
    if decision.action is not None:
        # Without an output there is still something to do with the item, and a reason for it.
        reason = {} if decision.output is not None else {"reason": decision.reason}
        output = {"action": decision.action, **output, **reason}
    return msgspec.json.encode(output).decode()


def completion(task: LoadedTask, inference: Inference, model: str) -> Completion:
    """A run as a completion of the `model` that was asked for."""
    return Completion(
        id=inference.id,
        created=int(inference.invocation.received_at.timestamp()),
        model=model,
        choices=[Choice(AnswerMessage(content_of(task, inference)), finish_reason=finish_of(task, inference))],
        usage=usage_of(inference.usage),
        taskgate=of_inference(inference),
    )


def usage_of(usage: Usage) -> ChatUsage:
    """The tokens, in OpenAI's words."""
    return ChatUsage(usage.input_tokens, usage.output_tokens, usage.input_tokens + usage.output_tokens)


def error_of(error: GatewayError, exchange: Exchange) -> ErrorAnswer:
    """An error in the place of a problem document."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    mistakes: Any = error.extra.get("errors") or [{}]
    message = ": ".join(filter(None, (error.detail.rstrip("."), mistakes[0].get("message"))))
    return ErrorAnswer(ErrorBody(message, kind, error.code, mistakes[0].get("path"), exchange.request_id))


def event_of(value: object) -> bytes:
    """One server-sent event; they have no names here."""
    return b"data: %s\n\n" % msgspec.json.encode(value)
