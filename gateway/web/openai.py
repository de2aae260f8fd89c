"""The tasks behind OpenAI's chat API, for clients that speak nothing else: `model` is `task:<name>`.

The same run as `/tasks/<name>/invoke`, with the same key, quotas, budgets and ledger. The last user message is the
input: a JSON object as it is, any other text as the one text field that the task requires. What stands before it is
not read, for a task has a prompt of its own; nor are sampling parameters, for its answers are greedy.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.core.errors import (
    BudgetExceeded,
    CascadeExhausted,
    Conflict,
    GatewayError,
    Overloaded,
    QuotaExceeded,
    UnknownTask,
)
from gateway.core.inference import Inference, Invocation, Usage
from gateway.core.loaded import LoadedTask
from gateway.web.answers import RunMetadata, answer_headers, of_inference
from gateway.web.api import Verbs, may_call, wishes_of
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import attribution, invalid, parse
from gateway.web.exchange import Exchange, exchange_of
from gateway.web.limits import read_body
from gateway.web.live import Live
from gateway.web.problems import as_gateway_error, problem_reply
from gateway.web.reply import EventStream, Headers, Reply, json_reply

AnyRequest = Request[Any, Any, Any]

PREFIX = "task:"
_FAILURES = (UnknownTask, Conflict, QuotaExceeded, BudgetExceeded, CascadeExhausted, Overloaded)


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
    """What is read is `model`, `messages` and the stream's options; the rest is allowed and means nothing to a task."""

    model: Annotated[str, Meta(max_length=200)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
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
    """A task, as a model."""

    id: str
    owned_by: str
    created: int = 0
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True):
    """The tasks that the caller's team may call."""

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


class ChatPages:
    """The handlers."""

    def __init__(self, doors: Doors, settings: WebSettings, verbs: Verbs) -> None:
        self._doors, self._settings, self._verbs = doors, settings, verbs
        self._decoder = msgspec.json.Decoder(ChatBody)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        chat = contract("invoke", body=ChatBody, answer=Completion, errors=_FAILURES, error=ErrorAnswer)
        models = contract("invoke", "read", answer=ModelList, error=ErrorAnswer)
        handlers: Any = {Exception: self._refuse}
        return (
            post("/v1/chat/completions", status_code=200, opt=chat, exception_handlers=handlers)(self.complete_chat),
            get("/v1/models", opt=models, exception_handlers=handlers)(self.list_models),
        )

    async def complete_chat(self, request: AnyRequest) -> Reply:
        """Run the task that `model` names, as `task:<name>`, on the last user message. Streamed where asked for."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._decoder, await read_body(request, self._settings), self._settings)
        task = self._task(body.model, exchange)
        wishes = wishes_of(request)
        asked = self._verbs.invocation(task, exchange, _input(task, body.messages), attribution(None, None), wishes)
        if body.stream:
            return await self._streamed(task, asked, body, exchange)
        answer = await self._doors.engine.invoke(task, asked)
        headers = answer_headers(exchange.headers(), answer, self._doors.clock.since_ms(exchange.started_s))
        return json_reply(_completion(task, answer.inference, body.model), headers)

    async def list_models(self, request: AnyRequest) -> Reply:
        """The tasks that the caller's team may call, in OpenAI's list of models."""
        exchange = exchange_of(request, self._doors.clock)
        tasks = sorted(self._doors.registry().tasks.items())
        views = [
            ModelView(f"{PREFIX}{name}", task.declared.owner)
            for name, task in tasks
            if may_call(task, exchange.caller.team)
        ]
        return json_reply(ModelList(views), exchange.headers())

    def _task(self, model: str, exchange: Exchange) -> LoadedTask:
        if not model.startswith(PREFIX):
            raise UnknownTask("There is no such model. Models are tasks here: `task:<name>`; /v1/models lists them.")
        return self._verbs.task(model.removeprefix(PREFIX), exchange.caller)

    async def _streamed(self, task: LoadedTask, asked: Invocation, body: ChatBody, exchange: Exchange) -> Reply:
        live = Live(self._doors.engine, task, asked)
        if not await live.speaks():
            await live.answer()  # what was refused before anything was said is answered with its status
        return EventStream(self._chunks(task, live, body, exchange), exchange.headers())

    async def _chunks(self, task: LoadedTask, live: Live, body: ChatBody, exchange: Exchange) -> AsyncIterator[bytes]:
        def chunk(choices: list[dict[str, Any]], usage: ChatUsage | UnsetType = UNSET) -> bytes:
            return _event(Chunk(live.invocation.id, int(time.time()), body.model, choices, usage))

        def said(text: str, finish: str | None = None) -> bytes:
            delta = {"role": "assistant", "content": text} if finish is None else {}
            return chunk([{"index": 0, "delta": delta, "finish_reason": finish}])

        try:
            if _is_text(task):
                async for part in live.parts():
                    yield said("".join(map(str, part.values())))
            answer = await live.answer()
        except Exception as raised:
            yield _event(_error(as_gateway_error(raised, exchange), exchange))
            return
        if not _is_text(task):
            yield said(_content(task, answer.inference))
        yield said("", "stop")
        if body.stream_options is not None and body.stream_options.include_usage:
            yield chunk([], _usage(answer.inference.usage))
        yield b"data: [DONE]\n\n"

    def _refuse(self, request: AnyRequest, raised: Exception) -> Reply:
        """OpenAI's error object in the place of a problem document; status and headers are the same."""
        exchange = exchange_of(request, self._doors.clock)
        error = as_gateway_error(raised, exchange)
        *headers, _, _ = problem_reply(error, exchange).headers
        kept: Headers = list(headers)
        return json_reply(_error(error, exchange), kept, error.status)


def _input(task: LoadedTask, messages: Sequence[ChatMessage]) -> dict[str, Any]:
    """The last user message as the task's input. Raises InvalidInput."""
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    if last is None:
        raise invalid("There is nothing to answer.", ("$.messages", "holds no user message"))
    text = last.content if isinstance(last.content, str) else "".join(part.text for part in last.content)
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


def _is_text(task: LoadedTask) -> bool:
    return getattr(task.declared.stage[-1], "answer", None) == "text"


def _content(task: LoadedTask, inference: Inference) -> str:
    decision = inference.decision
    output: Mapping[str, Any] = decision.output or {}
    if _is_text(task):
        return "".join(map(str, output.values()))
    if decision.action is not None:
        # Without an output there is still something to do with the item, and a reason for it.
        reason = {} if decision.output is not None else {"reason": decision.reason}
        output = {"action": decision.action, **output, **reason}
    return msgspec.json.encode(output).decode()


def _completion(task: LoadedTask, inference: Inference, model: str) -> Completion:
    return Completion(
        id=inference.id,
        created=int(inference.invocation.received_at.timestamp()),
        model=model,
        choices=[Choice(AnswerMessage(_content(task, inference)))],
        usage=_usage(inference.usage),
        taskgate=of_inference(inference),
    )


def _usage(usage: Usage) -> ChatUsage:
    return ChatUsage(usage.input_tokens, usage.output_tokens, usage.input_tokens + usage.output_tokens)


def _error(error: GatewayError, exchange: Exchange) -> ErrorAnswer:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    mistakes: Any = error.extra.get("errors") or [{}]
    message = " ".join(filter(None, (error.detail, mistakes[0].get("message"))))
    return ErrorAnswer(ErrorBody(message, kind, error.code, mistakes[0].get("path"), exchange.request_id))


def _event(value: object) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(value)
