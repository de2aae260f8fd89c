"""What one generation is asked to do, and what comes out of it."""

from collections.abc import Callable

from msgspec import Struct, field

from gateway.local.llm.grammar import Grammar


class Sampling(Struct, frozen=True, kw_only=True):
    """How a token is drawn. Penalties also apply to greedy choice; log-probs are those after all of this, as in TGI."""

    greedy: bool = True
    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0

    @property
    def plain(self) -> bool:
        """Greedy on untouched logits: the path of classification, computed for a whole batch at once."""
        return self.greedy and self.repetition_penalty == 1.0 and self.frequency_penalty == 0.0


class Generation(Struct, frozen=True, kw_only=True):
    """A validated request: prompt token ids and when to stop."""

    prompt: list[int]
    adapter: str
    max_new_tokens: int
    sampling: Sampling = Sampling()
    top_n: int = 0
    stop: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    grammar: Grammar | None = None


class Token(Struct, frozen=True):
    """`text` is what this token adds to the text; empty while it holds only part of a character."""

    id: int
    text: str
    logprob: float
    special: bool


class Step(Struct, frozen=True, kw_only=True):
    """One generated token. `finish` is None until the last. `prompt_logprobs` comes with the first, if asked for."""

    token: Token
    top: list[Token]
    finish: str | None = None
    text: str | None = None
    prompt_logprobs: list[float | None] | None = None


class Failed(Struct, frozen=True):
    """The generation ended without its last token: the model failed, or the server is stopping."""

    reason: str


class Dropped(Struct, frozen=True):
    """The generation ended because its client had gone."""


Event = Step | Failed | Dropped


class Job(Struct, eq=False, kw_only=True):
    """A generation on its way through the engine. Times are seconds of `time.perf_counter`.

    `emit` is called on the engine's thread, with events in order; exactly one of them is last (`is_last`).
    `cancelled` is set by the client's side and read by the engine before each piece of work.
    """

    generation: Generation
    emit: Callable[[Event], None]
    queued_at_s: float
    started_at_s: float = 0.0
    cancelled: bool = False
    generated: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens of keys and values that it can grow to."""
        return len(self.generation.prompt) + self.generation.max_new_tokens


def is_last(event: Event) -> bool:
    """True for the event after which a job says nothing more."""
    return not isinstance(event, Step) or event.finish is not None
