"""The life of a generation: wait → read the prompts that wait, together → one token a turn → leave.

One thread owns the model. Every turn takes in what has arrived, reads its prompts (grouped by adapter and by kept
prefix), then moves every running batch on by a token; requests join and leave between turns. A request whose client
has gone is noticed before each piece of work and costs nothing from then on.
"""

import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from threading import Thread

import structlog
import torch
from msgspec import Struct, field

from gateway.local.llm.attention import Context, KeysValues, read_prompts, read_tokens
from gateway.local.llm.choosing import Choice, choose, choose_greedy
from gateway.local.llm.jobs import Dropped, Event, Failed, Job, Step, Token
from gateway.local.llm.metrics import Metrics
from gateway.local.llm.prefixes import PrefixCache
from gateway.local.llm.spelling import Speller, spell
from gateway.local.llm.text import Text

log = structlog.get_logger()


class Limits(Struct, frozen=True, kw_only=True):
    """`batch_tokens` bounds the keys and values of everything that runs; `prefill_tokens` one reading of prompts,
    padding included. `gather_s` is how long an idle engine waits for company after a first request."""

    batch_tokens: int = 32_768
    prefill_tokens: int = 4_096
    prefix_tokens: int = 8_192
    gather_s: float = 0.002


class Row(Struct, eq=False):
    """A job in a batch, and the spelling of its text so far."""

    job: Job
    speller: Speller


class Batch(Struct):
    """Rows that share an adapter and a context, in the same order."""

    rows: list[Row] = field(default_factory=list)
    context: Context | None = None


class Engine:
    """Runs jobs on its own thread. `models` holds the base model under "" and one model an adapter."""

    def __init__(self, models: Mapping[str, torch.nn.Module], text: Text, metrics: Metrics, limits: Limits) -> None:
        self._models, self._text, self._metrics, self._limits = models, text, metrics, limits
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._batches: dict[str, Batch] = {}
        self._prefixes = PrefixCache(limits.prefix_tokens)
        self._thread = Thread(target=self._run, name="llm-engine", daemon=True)
        self._open = True

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def works(self) -> bool:
        """False once the engine has ended, for whatever reason."""
        return self._open and self._thread.is_alive()

    def stop(self) -> None:
        """End: what waits or runs fails. Returns when the thread has ended."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Hand a job over; its events come from the engine's thread. Safe from any thread."""
        if not self._open:
            self._end(job, Failed("the server is stopping"), "stopped")
            return
        self._inbox.put(job)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._open:
                    self._turn()
        except Exception:
            # A defect of the engine's own: whoever waits must hear of it, and `/health` tells the rest.
            log.exception("engine_broke")
        self._open = False
        while not self._inbox.empty():
            if job := self._inbox.get():
                self._waiting.append(job)
        for job in (*self._waiting, *(row.job for batch in self._batches.values() for row in batch.rows)):
            self._end(job, Failed("the server is stopping"), "stopped")

    def _turn(self) -> None:
        self._receive()
        self._forget_the_gone()
        for jobs, prefix in self._groups(self._admit()):
            self._read(jobs, prefix)
        for adapter in list(self._batches):
            self._advance(adapter)
        self._metrics.load(len(self._waiting), self._running)

    @property
    def _running(self) -> int:
        return sum(len(batch.rows) for batch in self._batches.values())

    def _receive(self) -> None:
        """Take in what has arrived; with nothing else to do, wait for it, and a moment more for its company."""
        idle = not self._waiting and not self._batches
        until_s = None
        while self._open:
            try:
                if until_s is None:
                    job = self._inbox.get(block=idle)
                else:
                    job = self._inbox.get(timeout=max(until_s - time.perf_counter(), 0.0))
            except queue.Empty:
                return
            if job is None:
                self._open = False
                return
            self._waiting.append(job)
            if idle and until_s is None:
                until_s = time.perf_counter() + self._limits.gather_s

    def _forget_the_gone(self) -> None:
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            self._end(job, Dropped(), "disconnected")
        for adapter, batch in list(self._batches.items()):
            gone = [row for row in batch.rows if row.job.cancelled]
            if gone:
                for row in gone:
                    self._end(row.job, Dropped(), "disconnected")
                self._keep(adapter, [i for i, row in enumerate(batch.rows) if not row.job.cancelled])

    def _admit(self) -> list[Job]:
        """The jobs at the head of the line that there is room for; one always fits into an empty engine."""
        used = sum(row.job.room for batch in self._batches.values() for row in batch.rows)
        admitted: list[Job] = []
        while self._waiting and (not used or used + self._waiting[0].room <= self._limits.batch_tokens):
            job = self._waiting.popleft()
            used += job.room
            admitted.append(job)
        return admitted

    def _groups(self, jobs: Iterable[Job]) -> Iterator[tuple[list[Job], tuple[int, ...]]]:
        """Jobs that can be read together: same adapter, same kept prefix, and not too many tokens at once.

        Prompts whose own log-probs are asked for are read whole, so behind no prefix.
        """
        keyed = [(job.generation.adapter, job.generation.prompt_logprobs, self._prefix_of(job), job) for job in jobs]
        keyed.sort(key=lambda k: (*k[:3], len(k[3].generation.prompt)))
        for (_, _, prefix), members in groupby(keyed, key=lambda k: k[:3]):
            group: list[Job] = []
            for *_, job in members:
                # Sorted by length: the newest is the longest, and the others are padded to it.
                tokens = (len(group) + 1) * (len(job.generation.prompt) - len(prefix))
                if group and tokens > self._limits.prefill_tokens:
                    yield group, prefix
                    group = []
                group.append(job)
            yield group, prefix

    def _prefix_of(self, job: Job) -> tuple[int, ...]:
        if job.generation.prompt_logprobs:
            return ()
        return self._prefixes.longest(job.generation.adapter, job.generation.prompt)

    def _read(self, jobs: list[Job], prefix: tuple[int, ...]) -> None:
        """Read the prompts of a group, give each its first token, and let those that go on join the batch."""
        adapter, every = jobs[0].generation.adapter, jobs[0].generation.prompt_logprobs
        prompts = [job.generation.prompt for job in jobs]
        for job in jobs:
            job.started_at_s = time.perf_counter()
        rows = [Row(job, Speller(self._text.decode, job.generation.prompt)) for job in jobs]
        try:
            cache = self._prefixes.get(adapter, prefix)
            if cache is None:  # what a group before this one in the same turn was learned from took its room
                prefix, cache = (), KeysValues()
            suffixes = [prompt[len(prefix) :] for prompt in prompts]
            logits, context = read_prompts(self._models[adapter], suffixes, cache, every)
            choices = _choices(rows, logits[:, -1] if every else logits)
        except RuntimeError as error:
            self._fail(jobs, error)
            return
        for prompt in prompts:
            self._metrics.prompt_run(len(prompt), len(prefix))
        self._prefixes.learn(adapter, prompts, context)
        scores = [_prompt_logprobs(row, prompt) for row, prompt in zip(logits, prompts, strict=True)] if every else None
        going_on = self._say(rows, choices, scores)
        if going_on:
            self._join(adapter, Batch([rows[i] for i in going_on], context.keep(going_on)))

    def _advance(self, adapter: str) -> None:
        """One more token for every row of a batch."""
        batch = self._batches[adapter]
        assert batch.context is not None
        try:
            last = [row.job.generated[-1] for row in batch.rows]
            logits, batch.context = read_tokens(self._models[adapter], last, batch.context)
            choices = _choices(batch.rows, logits)
        except RuntimeError as error:
            del self._batches[adapter]
            self._fail([row.job for row in batch.rows], error)
            return
        self._keep(adapter, self._say(batch.rows, choices, None))

    def _say(
        self, rows: Sequence[Row], choices: Sequence[Choice], prompt_logprobs: list[list[float | None]] | None
    ) -> list[int]:
        """Tell every row its next token; returns the indices of the rows that want another."""
        going_on = []
        for i, (row, choice) in enumerate(zip(rows, choices, strict=True)):
            step = self._step(row, choice, prompt_logprobs[i] if prompt_logprobs else None)
            if step.finish is None:
                going_on.append(i)
                row.job.emit(step)
            else:
                self._end(row.job, step, None)
        return going_on

    def _step(self, row: Row, choice: Choice, prompt_logprobs: list[float | None] | None) -> Step:
        job, text = row.job, self._text
        job.generated.append(choice.id)
        token = Token(choice.id, row.speller.push(choice.id), choice.logprob, choice.id in text.special)
        top = [Token(id_, text.decode([id_]), logprob, id_ in text.special) for id_, logprob in choice.top]
        said, finish = None, self._finish(job)
        if finish is not None:
            said = spell(text.decode_visible, job.generation.prompt, job.generated)
        return Step(token=token, top=top, finish=finish, text=said, prompt_logprobs=prompt_logprobs)

    def _finish(self, job: Job) -> str | None:
        generation = job.generation
        if job.generated[-1] in self._text.ends:
            return "eos_token"
        if generation.stop:
            said = spell(self._text.decode_visible, generation.prompt, job.generated)
            if said.endswith(generation.stop):
                return "stop_sequence"
        return "length" if len(job.generated) >= generation.max_new_tokens else None

    def _join(self, adapter: str, batch: Batch) -> None:
        running = self._batches.setdefault(adapter, Batch())
        joined = running.context.joined(batch.context) if running.context and batch.context else batch.context
        self._batches[adapter] = Batch([*running.rows, *batch.rows], joined)

    def _keep(self, adapter: str, going_on: list[int]) -> None:
        batch = self._batches[adapter]
        if not going_on:
            del self._batches[adapter]
        elif len(going_on) < len(batch.rows):
            assert batch.context is not None
            self._batches[adapter] = Batch([batch.rows[i] for i in going_on], batch.context.keep(going_on))

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        log.error("generation_failed", error=str(error))
        for job in jobs:
            self._end(job, Failed(str(error)), "generation")

    def _end(self, job: Job, event: Event, failure: str | None) -> None:
        """Count a job as ended, then say so: in this order, so that who was answered finds itself counted."""
        if job.generated:
            self._metrics.ended(len(job.generated), time.perf_counter() - job.queued_at_s, failure)
        else:
            self._metrics.refused(failure or "")
        job.emit(event)


def _choices(rows: Sequence[Row], logits: torch.Tensor) -> list[Choice]:
    generations = [row.job.generation for row in rows]
    if all(generation.sampling.plain and generation.grammar is None for generation in generations):
        return choose_greedy(logits, [generation.top_n for generation in generations])
    return [_choice(row.job, row_logits) for row, row_logits in zip(rows, logits, strict=True)]


def _choice(job: Job, logits: torch.Tensor) -> Choice:
    generation = job.generation
    if generation.grammar is None:
        return choose(logits, generation.sampling, generation.top_n, generation.prompt, job.generated)
    allowed = generation.grammar.allow(logits)
    choice = choose(allowed, generation.sampling, generation.top_n, generation.prompt, job.generated)
    generation.grammar.follow(choice.id)
    return choice


def _prompt_logprobs(logits: torch.Tensor, prompt: Sequence[int]) -> list[float | None]:
    """Log-prob of each prompt token after those before it, from left-padded (S, V); the first has none."""
    ids = torch.tensor(prompt[1:], dtype=torch.long)
    logprobs = logits[len(logits) - len(prompt) : -1].log_softmax(-1)
    return [None, *logprobs.gather(1, ids[:, None]).squeeze(1).tolist()]
