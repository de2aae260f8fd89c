"""The port between a chain and a model server: what is asked, what comes back, and every way in which it can fail.

Both doors (TGI's own API, OpenAI-compatible chat) speak these types, so that one contract suite covers them.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, Literal

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from msgspec import Struct

from gateway.core.meter import Meter
from gateway.core.task import ChainStage


class Token(Struct, frozen=True):
    """A token and its natural log-probability. Chat servers name tokens by text only: then `id` is None."""

    text: str
    logprob: float
    id: int | None = None

    @property
    def key(self) -> int | str:
        """What labels are matched by: the id where the server gives one."""
        return self.text if self.id is None else self.id


class Position(Struct, frozen=True):
    """One generated token, and the likeliest ones in its place: more than asked for on ties, or none."""

    chosen: Token
    top: tuple[Token, ...] = ()


class Reply(Struct, frozen=True):
    """A model's whole answer. `input_tokens` is None where the server did not say."""

    text: str
    positions: tuple[Position, ...]
    input_tokens: int | None
    output_tokens: int
    finish_reason: str = ""


class Answer(str):
    """An LLM's text that remembers how it was generated: LangChain hands on nothing but a string here."""

    reply: Reply

    @classmethod
    def of(cls, reply: Reply) -> "Answer":
        """The text of a reply, with the reply on it."""
        answer = cls(reply.text)
        answer.reply = reply
        return answer


def reply_of(output: str | BaseMessage) -> Reply:
    """The reply behind what a model's runnable returned. Raises TypeError for another model's output."""
    found = output.response_metadata.get("reply") if isinstance(output, BaseMessage) else getattr(output, "reply", None)
    if not isinstance(found, Reply):
        raise TypeError("this output does not come from one of the gateway's model doors")
    return found


class Listener:
    """Hears an answer while it is generated. What was heard cannot be unsaid, so after it there is no other try."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.heard = False

    def __call__(self, text: str) -> None:
        """The next piece; an empty one says nothing."""
        if text:
            self.heard = True
            self._tell(text)


class Ask(Struct, frozen=True):
    """The bounds of one stage run: who counts, how long a try and all tries may take, how often to try again.

    `deadline` is a time of the event loop's clock. With a `listener` the door asks for the answer token by token.
    `only` names the one replica that may be asked, also where it takes no other requests.
    """

    meter: Meter
    timeout_s: float
    deadline: float
    retries: int
    listener: Listener | None = None
    hedge_after_s: float | None = None
    only: str | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of an answer has been passed on already."""
        return self.listener is not None and self.listener.heard


# LangChain gives a model neither the caller nor the clock. A context variable reaches it through any chain, also
# through those that a team builds by hand.
ASK: ContextVar[Ask] = ContextVar("ASK")


class _Bounds(Struct, frozen=True):
    deadline: float = math.inf
    only: str | None = None
    model: str | None = None


_BOUNDS: ContextVar[_Bounds] = ContextVar("_BOUNDS", default=_Bounds())  # noqa: B039


@contextmanager
def within(deadline: float = math.inf, only: str | None = None, model: str | None = None) -> Iterator[None]:
    """Within the block, stages ask until `deadline` at the latest, and only the replica `only` of `model`."""
    before = _BOUNDS.get()
    restore = _BOUNDS.set(_Bounds(min(deadline, before.deadline), only or before.only, model or before.model))
    try:
        yield
    finally:
        _BOUNDS.reset(restore)


def meant() -> str | None:
    """The model that alone may be asked, if it has to be one."""
    return _BOUNDS.get().model


@contextmanager
def asking(stage: ChainStage, meter: Meter, listener: Listener | None = None) -> Iterator[None]:
    """Within the block, model doors ask within the stage's bounds; its deadline counts from here."""
    bounds = _BOUNDS.get()
    deadline = min(asyncio.get_running_loop().time() + stage.deadline_s, bounds.deadline)
    ask = Ask(meter, stage.timeout_s, deadline, stage.retries, listener, stage.hedge_after_s, bounds.only)
    restore = ASK.set(ask)
    try:
        yield
    finally:
        ASK.reset(restore)


def unobserved(config: RunnableConfig | None) -> bool:
    """True inside a chain that no tracer and no callback listens to: then LangChain's bookkeeping is for nobody.

    It costs more than the rest of the chain. Outside a chain, global tracers are not known yet: then False.
    """
    callbacks = (config or {}).get("callbacks")
    return isinstance(callbacks, BaseCallbackManager) and not callbacks.handlers


class CallFault(Exception):
    """A request to a model server that brought no usable reply.

    `reason` is the stable word that callers see, `counted` whether the server may have counted tokens, `again` whether
    another try can help.
    """

    reason: ClassVar[str]
    counted: ClassVar[bool]
    again: ClassVar[bool]
    lost: ClassVar[Literal["timeout", "error"]] = "error"

    def __init__(self, detail: str = "", status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after_s = retry_after_s


class NotConnected(CallFault):
    """No connection came about, so nothing was asked."""

    reason, counted, again = "model_unavailable", False, True


class Busy(CallFault):
    """The server is full and turned the request away (429)."""

    reason, counted, again = "model_overloaded", False, True


class Refused(CallFault):
    """The server found the request wrong (422 and its like). It will find it wrong again."""

    reason, counted, again = "model_refused", False, False


class Slow(CallFault):
    """No whole answer within the time for one try."""

    reason, counted, again, lost = "model_timeout", True, True, "timeout"


class Broken(CallFault):
    """The server failed (424, 5xx), or the connection did before the answer was whole."""

    reason, counted, again = "model_error", True, True


class Unreadable(CallFault):
    """A whole answer that is none of the API's."""

    reason, counted, again = "model_answer_invalid", True, False
