"""Tasks and models behind OpenAI's chat API, for clients that speak nothing else.

`model` is `task:<name>`, or a model of models.toml that lists the caller's team. Either way it is the same run as over
`/tasks/<name>/invoke`, with the same key, quotas, budgets and ledger. A task takes the last user message as its input:
a JSON object as it is, any other text as the one text field that it requires. What stands before it is not read, for a
task has a prompt of its own; nor are sampling parameters, for its answers are greedy. A model alone takes all of them.
"""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import UNSET, UnsetType

from gateway.core import direct
from gateway.core.errors import BudgetExceeded, CascadeExhausted, Conflict, Overloaded, QuotaExceeded, UnknownTask
from gateway.core.inference import Invocation
from gateway.core.loaded import LoadedTask
from gateway.web.answers import answer_headers
from gateway.web.api import Verbs, may_call, wishes_of
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import attribution, parse
from gateway.web.exchange import Exchange, exchange_of
from gateway.web.limits import read_body
from gateway.web.live import Live
from gateway.web.openai_wire import (
    ChatBody,
    ChatUsage,
    Chunk,
    Completion,
    ErrorAnswer,
    ModelList,
    ModelView,
    completion,
    content_of,
    error_of,
    event_of,
    finish_of,
    input_of,
    is_text,
    usage_of,
    words_of,
)
from gateway.web.problems import as_gateway_error, problem_reply
from gateway.web.reply import EventStream, Headers, Reply, json_reply

AnyRequest = Request[Any, Any, Any]

PREFIX = "task:"
_FAILURES = (UnknownTask, Conflict, QuotaExceeded, BudgetExceeded, CascadeExhausted, Overloaded)


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
        """Run the task that `model` names, as `task:<name>`, on the last user message. Streamed where asked for.

        `model` may also be the name of a model that the caller's team may ask without a task: it gets all messages,
        `temperature` (0 where it is left out), `top_p`, `max_tokens`, `seed` and `stop`.
        """
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._decoder, await read_body(request, self._settings), self._settings)
        task = self._task(body.model, exchange)
        wishes = wishes_of(request)
        asked = self._verbs.invocation(task, exchange, input_of(task, body), attribution(None, None), wishes)
        if body.stream:
            return await self._streamed(task, asked, body, exchange)
        answer = await self._doors.engine.invoke(task, asked)
        headers = answer_headers(exchange.headers(), answer, self._doors.clock.since_ms(exchange.started_s))
        return json_reply(completion(task, answer.inference, body.model), headers)

    async def list_models(self, request: AnyRequest) -> Reply:
        """The tasks that the caller's team may call, and the models that it may ask, in OpenAI's list of models."""
        exchange = exchange_of(request, self._doors.clock)
        registry, team = self._doors.registry(), exchange.caller.team
        named = [(f"{PREFIX}{name}", task) for name, task in sorted(registry.tasks.items())]
        named += [(name.removeprefix(direct.PREFIX), task) for name, task in sorted(registry.direct.items())]
        views = [ModelView(name, task.declared.owner) for name, task in named if may_call(task, team)]
        return json_reply(ModelList(views), exchange.headers())

    def _task(self, model: str, exchange: Exchange) -> LoadedTask:
        if model.startswith(PREFIX):
            return self._verbs.task(model.removeprefix(PREFIX), exchange.caller)
        if (name := direct.PREFIX + model) not in self._doors.registry().direct:
            raise UnknownTask("There is no such model. Tasks are models too: `task:<name>`; /v1/models lists all.")
        return self._verbs.task(name, exchange.caller)

    async def _streamed(self, task: LoadedTask, asked: Invocation, body: ChatBody, exchange: Exchange) -> Reply:
        live = Live(self._doors.engine, task, asked)
        if not await live.speaks():
            await live.answer()  # what was refused before anything was said is answered with its status
        return EventStream(self._chunks(task, live, body, exchange), exchange.headers())

    async def _chunks(self, task: LoadedTask, live: Live, body: ChatBody, exchange: Exchange) -> AsyncIterator[bytes]:
        def chunk(choices: list[dict[str, Any]], usage: ChatUsage | UnsetType = UNSET) -> bytes:
            return event_of(Chunk(live.invocation.id, int(time.time()), body.model, choices, usage))

        def said(text: str, finish: str | None = None) -> bytes:
            delta = {"role": "assistant", "content": text} if finish is None else {}
            return chunk([{"index": 0, "delta": delta, "finish_reason": finish}])

        try:
            if is_text(task):
                async for part in live.parts():
                    if words := words_of(task, part):
                        yield said(words)
            answer = await live.answer()
        except Exception as raised:
            yield event_of(error_of(as_gateway_error(raised, exchange), exchange))
            return
        if not is_text(task):
            yield said(content_of(task, answer.inference))
        yield said("", finish_of(task, answer.inference))
        if body.stream_options is not None and body.stream_options.include_usage:
            yield chunk([], usage_of(answer.inference.usage))
        yield b"data: [DONE]\n\n"

    def _refuse(self, request: AnyRequest, raised: Exception) -> Reply:
        """OpenAI's error object in the place of a problem document; status and headers are the same."""
        exchange = exchange_of(request, self._doors.clock)
        error = as_gateway_error(raised, exchange)
        *headers, _, _ = problem_reply(error, exchange).headers
        kept: Headers = list(headers)
        return json_reply(error_of(error, exchange), kept, error.status)
