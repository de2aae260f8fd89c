"""What a model would have been asked of traffic that no model saw: the prompts' tokens, counted on a random sample.

A message's text is kept nowhere, so its tokens are counted while it is at hand: after the answer, off the event loop,
with the model's own tokeniser. `gateway usage savings` needs these counts for what it says of suppressed traffic.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import structlog
from msgspec import Struct

from gateway.core.errors import Unavailable
from gateway.core.inference import Answer, Inference, Invocation
from gateway.core.loaded import LoadedTask
from gateway.core.task import ChainStage

log = structlog.get_logger()

EVERY_S = 2.0
# Inputs that wait to be counted; a process that is too busy for that counts fewer of them.
_MOST_WAITING = 1000


class PromptSample(Struct, frozen=True, kw_only=True):
    """The prompt of one inference that no model was called for. `cached`: the cache answered, or a run under way."""

    inference_id: str
    task: str
    model: str
    cached: bool
    input_tokens: int
    received_at: datetime


class PromptSamples(Protocol):
    """Where they are kept."""

    async def add(self, samples: Sequence[PromptSample]) -> None:
        """Returns when they are durable. Raises Unavailable."""


@runtime_checkable
class CountsPrompts(Protocol):
    """A stage's runner that knows what it would send."""

    def prompt_tokens(self, item: Mapping[str, Any]) -> int | None:
        """Tokens of the prompt of a validated input, as the model's server counts them; None where only it knows."""


class _Waiting(Struct, frozen=True):
    runner: CountsPrompts
    model: str
    inference: Inference


class PromptSampler:
    """An Observer of the engine that samples each suppressed inference with the same probability, by its id."""

    def __init__(self, samples: PromptSamples, share: float) -> None:
        self._samples = samples
        self._below = int(share * 2**32)
        self._waiting: deque[_Waiting] = deque(maxlen=_MOST_WAITING)

    def answered(self, task: LoadedTask, answer: Answer) -> None:
        """Remember it, where it is of the sample; nothing is counted yet."""
        inference = answer.inference
        # The end of a UUIDv7 is random.
        if int(inference.id[-8:], 16) >= self._below or answer.replayed or not _suppressed(inference):
            return
        step = next((step for step in task.steps if isinstance(step.stage, ChainStage)), None)
        if step is not None and isinstance(step.stage, ChainStage) and isinstance(step.runner, CountsPrompts):
            self._waiting.append(_Waiting(step.runner, step.stage.model, inference))

    def refused(self, task: LoadedTask, invocation: Invocation, error: BaseException) -> None:
        """It would have been refused before a model, too."""

    async def turn(self) -> None:
        """Count and keep what waits. Raises Unavailable; the sample is then smaller."""
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not waiting:
            return
        counted = await asyncio.to_thread(lambda: [_sample(each) for each in waiting])
        if samples := [sample for sample in counted if sample is not None]:
            await self._samples.add(samples)

    async def follow(self) -> None:
        """Take turns until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.turn()
            except Unavailable:
                log.warning("prompt_samples_lost")


def _suppressed(inference: Inference) -> bool:
    called = any(attempt.calls for attempt in inference.attempts)
    return inference.invocation.kind == "invoke" and not called


def _sample(waiting: _Waiting) -> PromptSample | None:
    inference = waiting.inference
    asked = inference.invocation
    if (tokens := waiting.runner.prompt_tokens(asked.input)) is None:
        return None
    return PromptSample(
        inference_id=inference.id,
        task=asked.task,
        model=waiting.model,
        cached=inference.cache in ("hit", "shared"),
        input_tokens=tokens,
        received_at=asked.received_at,
    )
