"""The three verbs of a task: invoke, batch, stream. This is the hot path of the web layer."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import msgspec
import structlog
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler

from gateway.core.cache import canonical_json
from gateway.core.direct import is_direct
from gateway.core.errors import (
    BudgetExceeded,
    CascadeExhausted,
    Conflict,
    Forbidden,
    GatewayError,
    InvalidInput,
    Overloaded,
    QuotaExceeded,
    UnknownTask,
)
from gateway.core.inference import Answer, Attribution, Caller, Invocation, RateHeader
from gateway.core.loaded import LoadedTask
from gateway.core.prices import from_nano
from gateway.web.answers import (
    BatchAnswer,
    BatchMetadata,
    InvokeAnswer,
    RunMetadata,
    answer_headers,
    of_failure,
    of_inference,
    rate_headers,
)
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import (
    BatchBody,
    Config,
    InvokeBody,
    ItemMetadata,
    attribution,
    check_input,
    invalid,
    parse,
)
from gateway.web.exchange import Exchange, exchange_of, header
from gateway.web.limits import read_body
from gateway.web.live import Live
from gateway.web.problems import as_gateway_error, problem
from gateway.web.reply import EventStream, Reply, event, events_reply, json_reply

log = structlog.get_logger()

AnyRequest = Request[Any, Any, Any]
Each = TypeVar("Each", Config, ItemMetadata)

_IDEMPOTENCY_KEY = re.compile(rb"[\x21-\x7e]{1,255}")
_LINKS = {
    "run": {
        "operationId": "show_run",
        "parameters": {"task": "$request.path.task", "run_id": "$response.body#/metadata/run_id"},
    },
    "feedback": {
        "operationId": "give_feedback",
        "parameters": {"task": "$request.path.task"},
        "requestBody": {"run_id": "$response.body#/metadata/run_id", "comment": "Thank you."},
    },
}
_FAILURES = (UnknownTask, Conflict, QuotaExceeded, BudgetExceeded, CascadeExhausted, Overloaded)


class Wishes(msgspec.Struct, frozen=True):
    """What the request's headers ask for."""

    idempotency_key: str | None
    no_cache: bool
    no_store: bool

    def at(self, position: int) -> "Wishes":
        """The same for one input of a batch."""
        if self.idempotency_key is None:
            return self
        return msgspec.structs.replace(self, idempotency_key=f"{self.idempotency_key}#{position}")


class _Item(msgspec.Struct, frozen=True):
    """What became of one input of a batch."""

    output: dict[str, Any] | None
    metadata: RunMetadata
    cost_nano: int
    rates: tuple[RateHeader, ...] = ()


class Verbs:
    """The handlers. Each finds the task before it reads a byte of the body, and parses the body once."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings
        self._invoke_decoder = msgspec.json.Decoder(InvokeBody)
        self._batch_decoder = msgspec.json.Decoder(BatchBody)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        invoke = contract("invoke", body=InvokeBody, answer=InvokeAnswer, errors=_FAILURES, links=_LINKS)
        batch = contract("invoke", body=BatchBody, answer=BatchAnswer, errors=(UnknownTask,))
        stream = contract("invoke", body=InvokeBody, answer=str, media_type="text/event-stream", errors=_FAILURES)
        return (
            post("/tasks/{task:str}/invoke", status_code=200, opt=invoke)(self.invoke),
            post("/tasks/{task:str}/batch", status_code=200, opt=batch)(self.batch),
            post("/tasks/{task:str}/stream", status_code=200, opt=stream)(self.stream),
        )

    async def invoke(self, request: AnyRequest) -> Reply:
        """Run the task on one input.

        A task with actions always answers 200 with an action. Any 5xx, 429 or timeout means: hold the item.
        """
        exchange = exchange_of(request, self._doors.clock)
        answer = await self._answer_one(request, exchange)
        metadata = of_inference(answer.inference)
        headers = answer_headers(exchange.headers(), answer, self._doors.clock.since_ms(exchange.started_s))
        return json_reply(InvokeAnswer(answer.inference.decision.output, metadata), headers)

    async def stream(self, request: AnyRequest) -> Reply:
        """Run the task on one input and answer in server-sent events: `metadata`, `data`, `end`.

        A text answer comes token by token, in `data` events that add up to the output; then the first `metadata` names
        the run, and a second one, before `end`, has the whole. Every other answer is one `data` event. An error before
        the first event is a problem document, a later one an `error` event. Whoever leaves stops nothing: the run is
        settled and recorded.
        """
        exchange = exchange_of(request, self._doors.clock)
        live = Live(self._doors.engine, *await self._asked(request, exchange))
        if await live.speaks():
            return EventStream(_spoken(live, exchange), exchange.headers())
        answer = await live.answer()
        headers = answer_headers(exchange.headers(), answer, self._doors.clock.since_ms(exchange.started_s))
        inference = answer.inference
        # `null` would be a chunk of nothing to a client that adds chunks up; an empty object is not.
        events = ((b"metadata", of_inference(inference)), (b"data", inference.decision.output or {}), (b"end", None))
        return events_reply(events, headers)

    async def batch(self, request: AnyRequest) -> Reply:
        """Run the task on many inputs, each an inference of its own.

        Answers 200 wherever the envelope is right; an input that failed has `error` in its metadata.
        With an Idempotency-Key, each input is claimed by its position under that key.
        """
        exchange = exchange_of(request, self._doors.clock)
        task, wishes = self._task(request, exchange.caller), wishes_of(request)
        body = parse(self._batch_decoder, await read_body(request, self._settings), self._settings)
        said = self._attributions(body)
        free = asyncio.Semaphore(self._settings.batch_concurrency)

        async def one(position: int) -> _Item:
            async with free:
                return await self._item(task, exchange, body.inputs[position], said[position], wishes.at(position))

        items = await asyncio.gather(*map(one, range(len(body.inputs))))
        responses = [item.metadata for item in items]
        answer = BatchAnswer([item.output for item in items], BatchMetadata([r.run_id for r in responses], responses))
        headers = exchange.headers()
        headers.append((b"x-gateway-cost", from_nano(sum(item.cost_nano for item in items)).encode()))
        seen = next((item.rates for item in reversed(items) if item.rates), ())
        return json_reply(answer, rate_headers(headers, seen))

    async def _answer_one(self, request: AnyRequest, exchange: Exchange) -> Answer:
        return await self._doors.engine.invoke(*await self._asked(request, exchange))

    async def _asked(self, request: AnyRequest, exchange: Exchange) -> tuple[LoadedTask, Invocation]:
        task, wishes = self._task(request, exchange.caller), wishes_of(request)
        body = parse(self._invoke_decoder, await read_body(request, self._settings), self._settings)
        said = attribution(body.metadata, body.config)
        return task, self.invocation(task, exchange, body.input, said, wishes)

    def _task(self, request: AnyRequest, caller: Caller) -> LoadedTask:
        return self.task(request.path_params["task"], caller)

    def task(self, name: str, caller: Caller) -> LoadedTask:
        """The task of that name. Raises UnknownTask, or Forbidden where it is not offered to the caller's team."""
        task = self._doors.registry().task(name)
        if not may_call(task, caller.team):
            raise Forbidden(f"The team `{caller.team}` is not among the callers of the task `{task.name}`.")
        return task

    def invocation(
        self, task: LoadedTask, exchange: Exchange, value: object, said: Attribution, wishes: Wishes
    ) -> Invocation:
        """What is asked, with ids and checked input. Raises InvalidInput."""
        checked = check_input(task, value)
        caller, declared, clock = exchange.caller, task.declared, self._doors.clock
        run_id = clock.new_id()
        return Invocation(
            id=run_id,
            task=task.name,
            fingerprint=task.fingerprint,
            caller=caller,
            owner_team=declared.owner,
            payer_team=declared.owner if declared.payer == "owner" else caller.team,
            input=checked,
            canonical=canonical_json(checked),
            received_at=clock.now(),
            attribution=said,
            idempotency_key=wishes.idempotency_key,
            # What a model alone says may be sampled: it is nobody else's answer.
            no_cache=wishes.no_cache or is_direct(task),
            no_store=wishes.no_store,
            trace_id=exchange.trace_id,
            origin=exchange.origin(run_id),
        )

    async def _item(
        self, task: LoadedTask, exchange: Exchange, value: object, said: Attribution, wishes: Wishes
    ) -> _Item:
        """One input of a batch: what goes wrong with it stays with it."""
        try:
            answer = await self._doors.engine.invoke(task, self.invocation(task, exchange, value, said, wishes))
        except GatewayError as error:
            failed = error
        except Exception:
            log.exception("batch_item_broken", task=task.name, request_id=exchange.request_id)
            failed = GatewayError("Something broke in the gateway; the request id finds it in the log.")
        else:
            inference = answer.inference
            return _Item(inference.decision.output, of_inference(inference), inference.usage.cost_nano, answer.rates)
        document = problem(failed, exchange.request_id)
        return _Item(None, of_failure(document, task.fingerprint, exchange.trace_id), 0)

    def _attributions(self, body: BatchBody) -> list[Attribution]:
        count = len(body.inputs)
        if count > self._settings.batch_max:
            raise invalid("Too many inputs.", ("$.inputs", f"holds more than {self._settings.batch_max} inputs"))
        metadata = _one_each(body.metadata, count, "$.metadata")
        config = _one_each(body.config, count, "$.config")
        return [attribution(m, c) for m, c in zip(metadata, config, strict=True)]


async def _spoken(live: Live, exchange: Exchange) -> AsyncIterator[bytes]:
    """The events of an answer that is heard while it is made."""
    asked = live.invocation
    begun = {"run_id": asked.id, "fingerprint": asked.fingerprint, "trace_id": asked.trace_id}
    yield event(b"metadata", begun)
    try:
        async for part in live.parts():
            yield event(b"data", part)
        answer = await live.answer()
    except Exception as raised:
        document = problem(as_gateway_error(raised, exchange), exchange.request_id)
        # The first two are what LangChain's client makes its exception of.
        yield event(b"error", {"status_code": document["status"], "message": document["detail"], **document})
        return
    yield event(b"metadata", of_inference(answer.inference))
    yield event(b"end", None)


def may_call(task: LoadedTask, team: str) -> bool:
    """Whether the task is offered to the team; its owner may always call it."""
    callers = task.declared.callers
    return "*" in callers or team in callers or team == task.declared.owner


def _one_each(given: "list[Each] | Each | None", count: int, path: str) -> "Sequence[Each | None]":
    """A value for every input: the list as it is, or the one value repeated."""
    if not isinstance(given, list):
        return [given] * count
    if len(given) != count:
        raise invalid("The lists differ in length.", (path, f"needs one entry for each of the {count} inputs"))
    return given


def wishes_of(request: AnyRequest) -> Wishes:
    """Read from `Idempotency-Key` and `Cache-Control`. Raises InvalidInput."""
    key = header(request, b"idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInput("An Idempotency-Key is 1 to 255 visible ASCII characters.")
    control = header(request, b"cache-control")
    if key is None and control is None:
        return _NO_WISHES
    said = {part.strip().lower() for part in control.split(b",")} if control else set()
    return Wishes(key.decode() if key else None, b"no-cache" in said, b"no-store" in said)


_NO_WISHES = Wishes(None, False, False)
