"""The routes: TGI's own API, its OpenAI-compatible chat, and its metrics."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.enums import MediaType
from litestar.response import Stream
from msgspec import UNSET, Struct

from gateway.local.llm import chat
from gateway.local.llm.desk import Desk, Result, Ticket, unless_gone
from gateway.local.llm.grammar import Grammars, schema_of
from gateway.local.llm.jobs import Generation, Step
from gateway.local.llm.metrics import Metrics
from gateway.local.llm.refusals import Invalid, Refusal
from gateway.local.llm.text import Text
from gateway.local.llm.validation import Bounds, plan
from gateway.local.llm.wire import (
    ChatAnswer,
    ChatAnswerMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatUsage,
    Details,
    GenerateAnswer,
    GenerateBody,
    Info,
    Parameters,
    PrefillToken,
    StreamDetails,
    StreamEvent,
    TokenizeBody,
    TokenizedPiece,
    WireError,
    wire_token,
)

MAX_BODY_BYTES = 2_000_000
# Longer texts are tokenised on a thread: the loop must go on answering.
_SHORT_TEXT = 20_000

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")


class Serving(Struct, frozen=True, kw_only=True):
    """Everything that the routes need. `chat_format` is a key of `core.prompts.CHAT_FORMATS`."""

    desk: Desk
    text: Text
    grammars: Grammars
    bounds: Bounds
    info: Info
    metrics: Metrics
    chat_format: str


def build_app(serving: Serving, **litestar: Any) -> Litestar:
    """The ASGI application; further arguments go to Litestar (lifespan)."""
    app = Litestar(
        [generate_compat, generate, generate_stream, tokenize, chat_completions, models, info, health, metrics],
        exception_handlers={Refusal: _refuse},
        openapi_config=None,
        request_max_body_size=MAX_BODY_BYTES,
        **litestar,
    )
    app.state.serving = serving
    return app


@post("/", status_code=200)
async def generate_compat(request: AnyRequest) -> Response[Any]:
    """What the Hugging Face client posts to: a list of one answer, or a stream where the body says so."""
    body = await _body(request, GenerateBody)
    if body.stream:
        return await _stream(request, body)
    answer, headers = await _generate(request, body)
    return _json([answer], headers)


@post("/generate", status_code=200)
async def generate(request: AnyRequest) -> Response[Any]:
    """One answer; prompt and answer tokens are counted in the headers."""
    answer, headers = await _generate(request, await _body(request, GenerateBody))
    return _json(answer, headers)


@post("/generate_stream", status_code=200)
async def generate_stream(request: AnyRequest) -> Response[Any]:
    """The answer token by token, as server-sent events."""
    return await _stream(request, await _body(request, GenerateBody))


@post("/tokenize", status_code=200)
async def tokenize(request: AnyRequest) -> Response[Any]:
    """The tokens of a text, special tokens included."""
    body = await _body(request, TokenizeBody)
    pieces = await asyncio.to_thread(_serving(request).text.pieces, body.inputs)
    return _json([TokenizedPiece(*piece) for piece in pieces])


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: AnyRequest) -> Response[Any]:
    """A chat completion, whole or streamed."""
    serving, body = _serving(request), await _body(request, ChatBody)
    prompt = chat.render(body.messages, serving.chat_format)
    parameters = chat.parameters(body, serving.info)
    ticket = await _admit(request, prompt, parameters, special_tokens=False)
    if body.stream:
        return _events(_chat_chunks(ticket, body, serving.info.model_id))
    result = await unless_gone(ticket.result(), _left(request))
    return _json(_chat_answer(result, body, serving.info.model_id), _headers(result, len(prompt)))


@get("/v1/models")
async def models(request: AnyRequest) -> Response[Any]:
    """The base model and the adapters, in OpenAI's list."""
    info = _serving(request).info
    names = [info.model_id, *sorted(info.adapters)]
    return _json({"object": "list", "data": [{"id": n, "object": "model", "owned_by": info.model_id} for n in names]})


@get("/info")
async def info(request: AnyRequest) -> Response[Any]:
    """What is served, and within which bounds."""
    return _json(_serving(request).info)


@get("/health")
async def health(request: AnyRequest) -> Response[Any]:
    """200 while generations are served; it listens only once the model is loaded."""
    if _serving(request).desk.open:
        return Response(None)
    return _json(WireError("unhealthy", "healthcheck"), status=503)


@get("/metrics")
async def metrics(request: AnyRequest) -> Response[str]:
    """Prometheus text; see `metrics.py` for what exactly is counted."""
    return Response(_serving(request).metrics.render(), media_type="text/plain; version=0.0.4")


async def _generate(request: AnyRequest, body: GenerateBody) -> tuple[GenerateAnswer, dict[str, str]]:
    serving, wants = _serving(request), body.parameters or Parameters()
    ticket = await _admit(request, body.inputs, body.parameters, special_tokens=True)
    result = await unless_gone(ticket.result(), _left(request))
    answer = GenerateAnswer(
        generated_text=(body.inputs if wants.return_full_text else "") + (result.last.text or ""),
        details=_details(result, serving.text) if wants.details or wants.decoder_input_details else UNSET,
    )
    return answer, _headers(result, len(body.inputs))


async def _stream(request: AnyRequest, body: GenerateBody) -> Response[Any]:
    if body.parameters and body.parameters.decoder_input_details:
        raise _counted(request, Invalid("`decoder_input_details` == true is not supported when streaming tokens"))
    ticket = await _admit(request, body.inputs, body.parameters, special_tokens=True)
    full_text = body.inputs if body.parameters and body.parameters.return_full_text else ""
    return _events(_stream_events(ticket, full_text))


async def _admit(request: AnyRequest, inputs: str, parameters: Parameters | None, special_tokens: bool) -> Ticket:
    """Tokenise, validate, take a place. Raises Refusal; every refusal is counted."""
    serving = _serving(request)
    try:
        if len(inputs) > _SHORT_TEXT:
            prompt = await asyncio.to_thread(serving.text.encode, inputs, special_tokens)
        else:
            prompt = serving.text.encode(inputs, special_tokens)
        grammar = None
        if parameters is not None and parameters.grammar is not None:
            grammar = await asyncio.to_thread(serving.grammars.of_schema, schema_of(parameters.grammar))
        return serving.desk.admit(plan(parameters, prompt, serving.bounds, grammar))
    except Refusal as refusal:
        raise _counted(request, refusal) from None


async def _stream_events(ticket: Ticket, full_text: str) -> AsyncIterator[Any]:
    generation, n = ticket.job.generation, 0
    async for step in ticket.steps():
        n += 1
        final = step.finish is not None
        yield StreamEvent(
            index=n,
            token=wire_token(step.token),
            top_tokens=[wire_token(token) for token in step.top] or UNSET,
            generated_text=full_text + (step.text or "") if final else None,
            details=StreamDetails(
                finish_reason=step.finish or "",
                generated_tokens=n,
                seed=generation.sampling.seed,
                input_length=len(generation.prompt),
            )
            if final
            else None,
        )


async def _chat_chunks(ticket: Ticket, body: ChatBody, model: str) -> AsyncIterator[Any]:
    created, generated = int(time.time()), 0
    async for step in ticket.steps():
        generated += 1
        # The token that ends an answer is not part of its text.
        text = "" if step.finish == "eos_token" else step.token.text
        choice = ChatChunkChoice(
            delta=ChatDelta(text),
            logprobs=chat.logprobs([step]) if body.logprobs else None,
            finish_reason=chat.FINISH[step.finish] if step.finish else None,
        )
        yield ChatChunk(id="", created=created, model=model, system_fingerprint=model, choices=[choice])
    if body.stream_options and body.stream_options.include_usage:
        usage = _usage(ticket.job.generation, generated)
        yield ChatChunk(id="", created=created, model=model, system_fingerprint=model, choices=[], usage=usage)
    yield "[DONE]"


def _chat_answer(result: Result, body: ChatBody, model: str) -> ChatAnswer:
    choice = ChatChoice(
        message=ChatAnswerMessage(result.last.text or ""),
        logprobs=chat.logprobs(result.steps) if body.logprobs else None,
        finish_reason=chat.FINISH[result.last.finish or "length"],
    )
    usage = _usage(result.generation, len(result.steps))
    return ChatAnswer(
        id="", created=int(time.time()), model=model, system_fingerprint=model, choices=[choice], usage=usage
    )


def _usage(generation: Generation, generated: int) -> ChatUsage:
    return ChatUsage(len(generation.prompt), generated, len(generation.prompt) + generated)


def _details(result: Result, text: Text) -> Details:
    generation, steps = result.generation, result.steps
    return Details(
        finish_reason=result.last.finish or "length",
        generated_tokens=len(steps),
        seed=generation.sampling.seed,
        prefill=_prefill(generation, steps[0], text),
        tokens=[wire_token(step.token) for step in steps],
        top_tokens=[[wire_token(token) for token in step.top] for step in steps] if generation.top_n else UNSET,
    )


def _prefill(generation: Generation, first: Step, text: Text) -> list[PrefillToken]:
    if first.prompt_logprobs is None:
        return []
    pairs = zip(generation.prompt, first.prompt_logprobs, strict=True)
    return [PrefillToken(id_, text.decode([id_]), logprob) for id_, logprob in pairs]


def _headers(result: Result, characters: int) -> dict[str, str]:
    """TGI's: times in milliseconds, `x-compute-time` in seconds."""
    generated = len(result.steps)
    return {
        "x-compute-type": "cpu",
        "x-compute-time": f"{result.total_ms / 1000:.6f}",
        "x-compute-characters": str(characters),
        "x-total-time": str(math.ceil(result.total_ms)),
        "x-validation-time": "0",
        "x-queue-time": str(math.ceil(result.queue_ms)),
        "x-inference-time": str(math.ceil(result.inference_ms)),
        "x-time-per-token": str(math.ceil(result.inference_ms / generated)),
        "x-prompt-tokens": str(len(result.generation.prompt)),
        "x-generated-tokens": str(generated),
    }


def _events(events: AsyncIterator[Any]) -> Response[Any]:
    headers = {"x-compute-type": "cpu", "cache-control": "no-cache", "x-accel-buffering": "no"}
    return Stream(_sse(events), media_type="text/event-stream", headers=headers)


async def _sse(events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """Each event as a `data` line; a refusal on the way is the last event."""
    try:
        async for event in events:
            yield b"data:%b\n\n" % (event.encode() if isinstance(event, str) else msgspec.json.encode(event))
    except Refusal as refusal:
        yield b"data:%b\n\n" % msgspec.json.encode(WireError(refusal.error, refusal.error_type))


async def _left(request: AnyRequest) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: AnyRequest, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _counted(request, Invalid(str(error))) from None


def _counted(request: AnyRequest, refusal: Refusal) -> Refusal:
    _serving(request).metrics.refused(refusal.error_type)
    return refusal


def _refuse(_: AnyRequest, refusal: Refusal) -> Response[Any]:
    return _json(WireError(refusal.error, refusal.error_type), status=refusal.status)


def _serving(request: AnyRequest) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


def _json(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response[Any]:
    return Response(msgspec.json.encode(value), headers=headers, status_code=status, media_type=MediaType.JSON)
