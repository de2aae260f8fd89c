"""The bodies on the wire: TGI's own API and its OpenAI-compatible chat. Unknown fields are ignored, as TGI does.

Field names are the wire's. A parameter that is null counts as absent. Source: the API of text-generation-inference v3.
"""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.local.llm.jobs import Token

FALLBACK_MAX_NEW_TOKENS = 100


class Parameters(Struct, frozen=True, kw_only=True):
    """`parameters` of a generation. Where the whole object is missing, TGI samples; see `validation`."""

    adapter_id: str | None = None
    best_of: int | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: Any = None
    max_new_tokens: int | None = FALLBACK_MAX_NEW_TOKENS
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = None
    top_p: float | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None


class GenerateBody(Struct, frozen=True, kw_only=True):
    """`POST /generate` and `/generate_stream`; `stream` is read by `POST /` only."""

    inputs: str
    parameters: Parameters | None = None
    stream: bool = False


class WireToken(Struct, frozen=True):
    """A token in an answer."""

    id: int
    text: str
    logprob: float
    special: bool


class PrefillToken(Struct, frozen=True):
    """A token of the prompt; the first has no log-prob."""

    id: int
    text: str
    logprob: float | None


class Details(Struct, frozen=True, kw_only=True):
    """`details` of a whole answer. `top_tokens` is left out where none were asked for."""

    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[WireToken]
    top_tokens: list[list[WireToken]] | UnsetType = UNSET


class GenerateAnswer(Struct, frozen=True, kw_only=True):
    """Answer of `/generate`, and each element of the list that `POST /` answers."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(Struct, frozen=True, kw_only=True):
    """`details` of the last event of a stream."""

    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(Struct, frozen=True, kw_only=True):
    """One event of `/generate_stream`; text and details come with the last."""

    index: int
    token: WireToken
    top_tokens: list[WireToken] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class WireError(Struct, frozen=True):
    """Body of every error, and of an error inside a stream."""

    error: str
    error_type: str


class TokenizeBody(Struct, frozen=True):
    """`POST /tokenize`."""

    inputs: str


class TokenizedPiece(Struct, frozen=True):
    """A token of the input; `start` and `stop` are places in its characters."""

    id: int
    text: str
    start: int
    stop: int


class Info(Struct, frozen=True, kw_only=True):
    """`GET /info`. `adapters` (name → sha256) and `model_dtype` are additions to TGI's fields."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_device_type: str = "cpu"
    model_pipeline_tag: str = "text-generation"
    max_concurrent_requests: int
    max_best_of: int = 1
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    max_top_n_tokens: int
    validation_workers: int = 1
    max_client_batch_size: int = 1
    router: str = "taskgate-local"
    version: str
    sha: str | None = None
    docker_label: str | None = None
    adapters: dict[str, str]


class TextPart(Struct, frozen=True):
    """A piece of a message's content; only text is understood."""

    text: str
    type: Literal["text"] = "text"


class ChatMessage(Struct, frozen=True):
    """A turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]


class StreamOptions(Struct, frozen=True):
    """Whether the last chunk of a stream carries the usage."""

    include_usage: bool = False


class ChatBody(Struct, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`. `n` and `logit_bias` are ignored, as TGI does."""

    messages: list[ChatMessage]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    stop: list[str] | str | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: Any = None
    tools: Any = None


class ChatTopLogprob(Struct, frozen=True):
    """Text and log-prob, without the id: that is all TGI says here."""

    token: str
    logprob: float


class ChatLogprob(Struct, frozen=True):
    """The chosen token and its rivals."""

    token: str
    logprob: float
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """One entry a token."""

    content: list[ChatLogprob]


class ChatAnswerMessage(Struct, frozen=True):
    """What the model says."""

    content: str
    role: str = "assistant"


class ChatChoice(Struct, frozen=True, kw_only=True):
    """The one choice of an answer."""

    index: int = 0
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatUsage(Struct, frozen=True):
    """Tokens of the rendered prompt and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(Struct, frozen=True, kw_only=True):
    """A whole completion."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: ChatUsage


class ChatDelta(Struct, frozen=True):
    """What a chunk adds."""

    content: str
    role: str = "assistant"


class ChatChunkChoice(Struct, frozen=True, kw_only=True):
    """The one choice of a chunk."""

    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One event of a streamed completion; the last, with `include_usage`, has usage and no choice."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: ChatUsage | None = None


def wire_token(token: Token) -> WireToken:
    """A token as TGI spells it."""
    return WireToken(token.id, token.text, token.logprob, token.special)
