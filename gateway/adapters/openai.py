"""The same port over any OpenAI-compatible server: a LangChain chat model over `/v1/chat/completions`.

Over our own wire and not `langchain-openai`: that class is bound to one URL, sends `max_completion_tokens` where older
servers know `max_tokens` only, and brings a second HTTP client. Source: OpenAI's chat API reference, and TGI's router.
"""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from msgspec import Struct
from pydantic import ConfigDict, Field

from gateway.adapters.model_port import ASK, Broken, Listener, Position, Reply, Token, Unreadable, unobserved
from gateway.adapters.replicas import Replicas
from gateway.adapters.token_files import TokenCounter
from gateway.adapters.wire import Wire
from gateway.core.meter import MeteredModel

# The server's own template adds tokens around each turn, and some add a preamble: more than the known ones do.
_TEMPLATE_TOKENS = 32
_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class _Listed(Struct):
    token: str
    logprob: float


class _Choice(Struct):
    token: str
    logprob: float
    top_logprobs: list[_Listed] = []


class _Logprobs(Struct):
    content: list[_Choice] | None = None


class _Message(Struct):
    content: str | None = None


class _Answer(Struct):
    message: _Message
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int


class _Completion(Struct):
    choices: list[_Answer]
    usage: _Usage | None = None


class _Delta(Struct):
    content: str | None = None


class _Part(Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Part] = []
    usage: _Usage | None = None
    error: Any = None


class _Served(Struct):
    id: str


class _Models(Struct):
    data: list[_Served]


_COMPLETION: msgspec.json.Decoder[_Completion] = msgspec.json.Decoder(_Completion)
_CHUNK: msgspec.json.Decoder[_Chunk] = msgspec.json.Decoder(_Chunk)


class ChatServer(BaseChatModel):
    """An OpenAI-compatible server as a LangChain chat model: greedy, every request metered.

    `response_metadata` holds the `Reply`. Raises StageFailed. `top_logprobs` None asks for text only. A call may give
    `json_schema`, a grammar for the answer, `max_tokens` in place of the model's own, and what makes it sample.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model_name: str
    max_tokens: int
    top_logprobs: int | None = None
    cache: bool | None = False

    wire: Wire = Field(exclude=True)
    replicas: Replicas = Field(exclude=True)
    metered: MeteredModel = Field(exclude=True)
    counter: TokenCounter = Field(exclude=True)
    headers: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)

    @property
    def _llm_type(self) -> str:
        return "openai-compatible"

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """The assistant's message."""
        if not unobserved(config):
            return await super().ainvoke(input, config, stop=stop, **kwargs)
        result = await self._agenerate(self._convert_input(input).to_messages(), stop, **kwargs)
        message = result.generations[0].message
        assert isinstance(message, AIMessage)
        return message

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        body = self._body(messages, stop, **kwargs)
        listener = ASK.get().listener

        async def send(url: str) -> Reply:
            path = f"{url}/v1/chat/completions"
            if listener is not None:
                return await self._spoken(path, body, listener)
            return _reply((await self.wire.request("POST", path, self.headers, msgspec.json.encode(body))).body)

        most = await self.counter.most("".join(str(m.content) for m in messages))
        most += _TEMPLATE_TOKENS * (len(messages) + 1)
        reply = await self.replicas.call(self.metered, send, most, body["max_tokens"])
        message = AIMessage(content=reply.text, response_metadata={"reply": reply})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("the gateway's models are asked with ainvoke only")

    async def _spoken(self, path: str, body: Mapping[str, Any], listener: Listener) -> Reply:
        """The answer token by token."""
        asked = msgspec.json.encode({**body, "stream": True, "stream_options": {"include_usage": True}})
        said: list[str] = []
        finish = ""
        usage: _Usage | None = None
        async with aclosing(self.wire.events(path, self.headers, asked)) as events:
            async for data in events:
                if data == b"[DONE]":
                    read, written = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (None, 0)
                    return Reply("".join(said), (), read, written, finish)
                chunk = _chunk(data)
                usage = chunk.usage or usage
                for part in chunk.choices[:1]:
                    said.append(part.delta.content or "")
                    finish = part.finish_reason or finish
                    listener(said[-1])
        raise Broken("the stream ended before its last event", 200)

    def _body(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        json_schema: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        # A temperature that is left out samples.
        body: dict[str, Any] = {
            "model": self.model_name,
            "messages": [{"role": _ROLES[m.type], "content": m.content} for m in messages],
            "max_tokens": max_tokens or self.max_tokens,
            "temperature": temperature,
        }
        body |= {name: value for name, value in (("top_p", top_p), ("seed", seed)) if value is not None}
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if json_schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "output", "schema": json_schema},
            }
        if stop:
            body["stop"] = list(stop)
        return body


async def served_models(wire: Wire, url: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the models that a server serves. Raises CallFault."""
    body = (await wire.request("GET", f"{url}/v1/models", headers)).body
    try:
        return tuple(model.id for model in msgspec.json.decode(body, type=_Models).data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(f"not a list of models: {type(error).__name__}", 200) from error


def _reply(body: bytes) -> Reply:
    try:
        completion = _COMPLETION.decode(body)
        answer = completion.choices[0]
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
        raise Unreadable(f"not a chat completion: {type(error).__name__}", 200) from error
    content = (answer.logprobs.content if answer.logprobs is not None else None) or []
    usage = completion.usage
    return Reply(
        text=answer.message.content or "",
        positions=tuple(_position(choice) for choice in content),
        input_tokens=usage.prompt_tokens if usage is not None else None,
        output_tokens=usage.completion_tokens if usage is not None else 0,
        finish_reason=answer.finish_reason or "",
    )


def _chunk(data: bytes) -> _Chunk:
    try:
        chunk = _CHUNK.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(f"not a chunk of a chat completion: {type(error).__name__}", 200) from error
    if chunk.error is not None:
        raise Broken("an error within the stream", 200)
    return chunk


def _position(choice: _Choice) -> Position:
    top = tuple(Token(listed.token, listed.logprob) for listed in choice.top_logprobs)
    return Position(Token(choice.token, choice.logprob), top)
