"""The cnn stage: scores messages in micro-batches without holding up the event loop.

Whatever arrives in one turn of the event loop, or while a forward pass is under way, is scored together. A batch of
ordinary messages is scored on the spot: a thread would do no more on the one core that a worker has, and each of the
network's steps would wait there for the interpreter's lock. Only what would hold up the loop for long gets a thread.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from gateway.adapters.prefilter.reading import Reading, collate
from gateway.adapters.prefilter.weights import Prefilter, UnusableWeights, load_prefilter
from gateway.core.cascade import Finding, StageFailed
from gateway.core.loaded import StageFiles
from gateway.core.meter import Meter
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.task import CnnStage

BATCH = 32
"""Messages of one forward pass at most."""
INLINE_BYTES = 4096
"""Padded bytes of a batch that is scored on the event loop: at most some three milliseconds of one core."""


class _Waiting(NamedTuple):
    reading: Reading
    score: "asyncio.Future[float]"


class CnnRunner:
    """Scores the text field of an input with a prefilter. Belongs to one event loop at a time."""

    def __init__(self, prefilter: Prefilter, text: str) -> None:
        self._prefilter = prefilter
        self._text = text
        self._waiting: list[_Waiting] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = False
        self._thread = ThreadPoolExecutor(1, "prefilter", torch.set_num_threads, (1,))

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """The calibrated probability of the positive label. A text too long to be read whole has none."""
        text = item.get(self._text)
        if not isinstance(text, str):
            raise StageFailed("no_text", f"the input has no text in `{self._text}`")
        reading = self._prefilter.reader.read(text)
        if reading is None:
            return Finding(reason="input_too_long")
        score = await self._enqueued(reading)
        if math.isnan(score):
            raise StageFailed("score_not_finite")
        return Finding(score=score)

    def _enqueued(self, reading: Reading) -> "asyncio.Future[float]":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._waiting, self._busy = loop, [], False
        waiting = _Waiting(reading, loop.create_future())
        self._waiting.append(waiting)
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next)
        return waiting.score

    def _next(self) -> None:
        """Score what has arrived, a batch at a time, until nothing waits."""
        self._waiting = [w for w in self._waiting if not w.score.done()]
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        if not batch or self._loop is None:
            self._busy = False
            return
        readings = [w.reading for w in batch]
        if len(batch) * max(len(r.bytes) for r in readings) <= INLINE_BYTES:
            self._answer(batch, _outcome(self._prefilter, readings))
            self._loop.call_soon(self._next)
        else:
            passing = self._loop.run_in_executor(self._thread, _outcome, self._prefilter, readings)
            passing.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: Sequence[_Waiting], done: "asyncio.Future[Sequence[float] | Exception]") -> None:
        self._answer(batch, done.result())
        self._next()

    def _answer(self, batch: Sequence[_Waiting], outcome: Sequence[float] | Exception) -> None:
        for i, waiting in enumerate(batch):
            if waiting.score.done():
                continue
            if isinstance(outcome, Exception):
                waiting.score.set_exception(StageFailed("prefilter_error", repr(outcome)))
            else:
                waiting.score.set_result(outcome[i])


def scores(prefilter: Prefilter, readings: Sequence[Reading]) -> list[float]:
    """Calibrated probabilities, in order; NaN where the network answers so. Blocks for one forward pass."""
    with torch.inference_mode():
        logits = prefilter.network(collate(readings)).tolist()
    return [prefilter.calibration.score(logit) for logit in logits]


def build_cnn(stage: CnnStage, files: StageFiles, place: str) -> CnnRunner:
    """Load and check the stage's weights. Raises InvalidConfig.

    Sets torch to one thread for the process: a worker has one core, and small passes only lose by sharing.
    """
    torch.set_num_threads(1)
    try:
        prefilter = load_prefilter(files.folder / stage.weights)
    except UnusableWeights as error:
        file = f"tasks/{files.task_name}/{error.file.name}"
        raise InvalidConfig([Problem(file, "", error.message, error.hint)]) from error
    return CnnRunner(prefilter, stage.text)


def _outcome(prefilter: Prefilter, readings: Sequence[Reading]) -> Sequence[float] | Exception:
    """A failure is the batch's to report: raised in the thread, it would leave the others waiting."""
    try:
        return scores(prefilter, readings)
    except Exception as error:
        return error
