"""The one door to langchain-huggingface and huggingface_hub: a LangChain model over TGI's own API.

What is sent and what is read back follows text-generation-inference's router (`server.rs`, `validation.rs`).
"""

from collections.abc import Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Self

import httpx
import huggingface_hub
import msgspec
from huggingface_hub import AsyncInferenceClient
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.outputs import Generation, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_huggingface import HuggingFaceEndpoint
from msgspec import Struct
from pydantic import ConfigDict, Field, model_validator

from gateway.adapters.model_port import ASK, Answer, Broken, Listener, Position, Reply, Token, Unreadable, unobserved
from gateway.adapters.replicas import Replicas
from gateway.adapters.token_files import TokenCounter
from gateway.adapters.wire import Answered, Wire
from gateway.core.meter import MeteredModel


class _Details(Struct):
    finish_reason: str
    generated_tokens: int
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class _Generated(Struct):
    generated_text: str
    details: _Details


class _Spoken(Struct):
    text: str
    special: bool = False


class _End(Struct):
    finish_reason: str
    generated_tokens: int
    input_length: int | None = None


class _Event(Struct):
    token: _Spoken | None = None
    details: _End | None = None
    error: str | None = None


class _Info(Struct):
    model_id: str
    model_sha: str | None = None


class _Piece(Struct):
    id: int


class _Exchange:
    """What is added to a request of the hub's client, and what came back behind its back."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.answered: Answered | None = None


_EXCHANGE: ContextVar[_Exchange] = ContextVar("_EXCHANGE")
_GENERATE: msgspec.json.Decoder[list[_Generated]] = msgspec.json.Decoder(list[_Generated])
_encode = msgspec.json.Encoder().encode
_TEXT_ONLY = httpx.Response(200, content=b'[{"generated_text":""}]', request=httpx.Request("POST", "http://tgi/"))


class TgiSession(httpx.AsyncClient):
    """What the hub's client sends with: carries its requests over our wire, and keeps what it would lose or garble.

    The client drops the headers, where TGI counts the prompt's tokens; adds the personal token of whoever runs the
    process; maps a server that hangs up to "could not connect"; repeats a request that was answered 400; and copies
    details for longer than the whole request takes otherwise. So the answer stays here, and faults pass it by. Taken
    over at `post` and not at the transport, as httpx's own way there costs nine times what the rest of the client does.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    async def post(self, url: Any, *, json: Any = None, **_: Any) -> httpx.Response:
        """Ask for a generation: the only thing that the hub's client does here."""
        exchange = _EXCHANGE.get()
        exchange.answered = await self._wire.request("POST", str(url), exchange.headers, _encode(json))
        return _TEXT_ONLY


def hub_client(wire: Wire) -> AsyncInferenceClient:
    """The hub's client over `wire`. One per process: the hub's client factory is process-wide too."""
    huggingface_hub.set_async_client_factory(lambda: TgiSession(wire))
    # Any token keeps the client from looking for a personal one on disk at every request; it is never sent.
    return AsyncInferenceClient(token="unused")


class TgiLLM(HuggingFaceEndpoint):
    """TGI as a LangChain LLM: greedy, with details, every request metered and on the least busy replica.

    `generation_info` holds the `Reply`; so does the `Answer` that a chain gets. Raises StageFailed. A call may give
    `json_schema`, a grammar for the answer, and `max_tokens` in place of the model's own.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    # The defaults of the parent class sample.
    temperature: float | None = None
    top_p: float | None = None
    typical_p: float | None = None
    cache: bool | None = False
    huggingfacehub_api_token: str | None = None

    wire: Wire = Field(exclude=True)
    replicas: Replicas = Field(exclude=True)
    metered: MeteredModel = Field(exclude=True)
    counter: TokenCounter = Field(exclude=True)
    headers: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)

    @model_validator(mode="after")
    def validate_environment(self) -> Self:
        """The parent makes clients of its own here; ours is shared."""
        return self

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """The text, as an `Answer`."""
        prompt = self._convert_input(input)
        if unobserved(config):
            result = await self._agenerate([prompt.to_string()], stop, **kwargs)
        else:
            result = await self.agenerate_prompt([prompt], stop=stop, **_observers(config), **kwargs)
        return Answer.of((result.generations[0][0].generation_info or {})["reply"])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return LLMResult(generations=[[await self._generation(prompt, stop, **kwargs)] for prompt in prompts])

    async def _generation(self, prompt: str, stop: list[str] | None, **kwargs: Any) -> Generation:
        parameters = self._invocation_params(stop, **_as_tgi_names(kwargs))
        listener = ASK.get().listener

        async def send(url: str) -> Reply:
            if listener is not None:
                return await self._spoken(url, prompt, parameters, listener)
            exchange = _Exchange(self.headers)
            _EXCHANGE.set(exchange)
            await self.async_client.text_generation(prompt, model=f"{url}/", details=True, **parameters)
            return _reply(exchange.answered)

        most = await self.counter.most(prompt)
        reply = await self.replicas.call(self.metered, send, most, parameters["max_new_tokens"])
        return Generation(text=reply.text, generation_info={"reply": reply})

    async def _spoken(self, url: str, prompt: str, parameters: Mapping[str, Any], listener: Listener) -> Reply:
        """The answer token by token. Over our own wire: the hub's client loses what a broken stream has said."""
        given = {name: value for name, value in parameters.items() if value is not None}
        body = msgspec.json.encode({"inputs": prompt, "parameters": {**given, "details": True}})
        said: list[str] = []
        async with aclosing(self.wire.events(f"{url}/generate_stream", self.headers, body)) as events:
            async for data in events:
                event: _Event = _decode(data, _Event)
                if event.error is not None:
                    raise Broken("an error within the stream", 200)
                if event.token is not None and not event.token.special:
                    said.append(event.token.text)
                    listener(event.token.text)
                if (end := event.details) is not None:
                    return Reply("".join(said), (), end.input_length, end.generated_tokens, end.finish_reason)
        raise Broken("the stream ended before its last event", 200)


def tgi_llm(
    client: AsyncInferenceClient,
    wire: Wire,
    replicas: Replicas,
    metered: MeteredModel,
    counter: TokenCounter,
    headers: Mapping[str, str],
    *,
    max_new_tokens: int,
    top_n_tokens: int | None,
    adapter: str | None,
) -> TgiLLM:
    """The model of one stage. `top_n_tokens` None asks for the chosen tokens only."""
    extra = {"top_n_tokens": top_n_tokens, "adapter_id": adapter}
    return TgiLLM(
        model=replicas.urls[0],
        async_client=client,
        wire=wire,
        replicas=replicas,
        metered=metered,
        counter=counter,
        headers=dict(headers),
        max_new_tokens=max_new_tokens,
        model_kwargs={name: value for name, value in extra.items() if value is not None},
    )


async def tokenize(wire: Wire, url: str, headers: Mapping[str, str], text: str) -> list[int]:
    """Token ids as the server sees them. Raises CallFault."""
    body = msgspec.json.encode({"inputs": text})
    answered = await wire.request("POST", f"{url}/tokenize", headers, body)
    return [piece.id for piece in _decode(answered.body, list[_Piece])]


async def served_model(wire: Wire, url: str, headers: Mapping[str, str]) -> tuple[str, str | None]:
    """(model id, revision) that a server says it serves. Raises CallFault."""
    info = _decode((await wire.request("GET", f"{url}/info", headers)).body, _Info)
    return info.model_id, info.model_sha


def _reply(answered: Answered | None) -> Reply:
    if answered is None:
        raise Unreadable("the client answered without asking")
    try:
        generated = _GENERATE.decode(answered.body)[0]
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
        raise Unreadable(f"not TGI's answer: {type(error).__name__}", 200) from error
    details = generated.details
    tops = details.top_tokens or [[] for _ in details.tokens]
    positions = tuple(Position(token, tuple(top)) for token, top in zip(details.tokens, tops, strict=False))
    return Reply(
        text=generated.generated_text,
        positions=positions,
        input_tokens=_count(answered.headers.get("x-prompt-tokens")),
        output_tokens=details.generated_tokens,
        finish_reason=details.finish_reason,
    )


def _as_tgi_names(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` and `max_tokens` in TGI's words."""
    named = dict(kwargs)
    if (schema := named.pop("json_schema", None)) is not None:
        named["grammar"] = {"type": "json", "value": schema}
    if (most := named.pop("max_tokens", None)) is not None:
        named["max_new_tokens"] = most
    return named


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(f"not TGI's answer: {type(error).__name__}", 200) from error


def _observers(config: RunnableConfig | None) -> dict[str, Any]:
    """The parts of a chain's config that LangChain's tracing reads."""
    known = config or {}
    return {name: known.get(name) for name in ("callbacks", "tags", "metadata", "run_name", "run_id")}
