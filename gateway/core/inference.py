"""What happens at run time: what was asked, what each stage did, what was decided, what it cost.

All of these are values: made once, never changed. Times are UTC, `cost_nano` is integer nano-dollars (or whatever the
deployment's one currency is).
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from msgspec import Struct, field

Kind = Literal["invoke", "audit", "canary", "replay"]
CacheStatus = Literal["miss", "hit", "shared", "off"]


class Caller(Struct, frozen=True):
    """Who asks: the team, the key that proved it and what that key may do."""

    team: str
    key_id: str
    scopes: frozenset[str]


class Usage(Struct, frozen=True):
    """Tokens of model calls and their price.

    `provisional_nano` is what budgets count in place of a cost that is only known when the GPU-hour is shared out. It
    is never billed.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    provisional_nano: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost_nano + other.cost_nano,
            self.provisional_nano + other.provisional_nano,
        )


NOTHING_USED = Usage()


class Attribution(Struct, frozen=True):
    """What the caller says of the item, for accounting, threads and erasure. Never part of the answer."""

    item_id: str | None = None
    thread_id: str | None = None
    subject_id: str | None = None
    tags: tuple[str, ...] = ()


class Origin(Struct, frozen=True):
    """How a request came in, for traces and logs. `began_s`: the clock's `monotonic_s` at its first byte;
    `parent_span`: 16 hex digits, the span of whoever asked; `sampled`: its trace is kept, whatever becomes of it.
    """

    request_id: str
    began_s: float
    parent_span: str | None = None
    sampled: bool = False


class Invocation(Struct, frozen=True, kw_only=True):
    """One request to a task, validated: what was asked, by whom, under which version of the task.

    `parent_trace_id` is the trace of the run that `parent_id` names, which this one looks at again.
    `listener` is told the parts of an output while it is generated, where a stage can say them one by one: added up,
    they are the output. It must not block.
    """

    id: str
    task: str
    fingerprint: str
    caller: Caller
    owner_team: str
    payer_team: str
    input: dict[str, Any]
    canonical: bytes
    received_at: datetime
    kind: Kind = "invoke"
    parent_id: str | None = None
    attribution: Attribution = Attribution()
    idempotency_key: str | None = None
    no_cache: bool = False
    no_store: bool = False
    trace_id: str | None = None
    parent_trace_id: str | None = None
    origin: Origin | None = None
    listener: Callable[[dict[str, Any]], None] | None = None


class Intent(Struct, frozen=True, kw_only=True):
    """A model call that is about to be made, written durably before it, with the most that it can cost."""

    id: str
    inference_id: str
    attempt_id: str
    task: str
    caller_team: str
    owner_team: str
    payer_team: str
    key_id: str
    kind: Kind
    model: str
    replica: str
    estimate: Usage
    created_at: datetime
    gpu_hour_nano: int | None = None


class ModelCall(Struct, frozen=True, kw_only=True):
    """One request on the wire to a model server, with the id of its intent.

    `waited_ms`, for reservation and intent, went by before it.

    `settled` says that `usage` is what the server counted. Otherwise the answer never came whole, and `usage` is the
    most that the server can have counted. `gpu_hour_nano` is the rate of a model that is paid by the hour: what an hour
    of all its GPUs cost when the call was made.
    """

    id: str
    attempt_id: str
    model: str
    replica: str
    outcome: Literal["ok", "refused", "timeout", "error", "cancelled", "lost"]
    settled: bool
    usage: Usage
    started_at: datetime
    duration_ms: float
    http_status: int | None = None
    waited_ms: float = 0.0
    gpu_hour_nano: int | None = None


class Attempt(Struct, frozen=True, kw_only=True):
    """One stage run inside an inference."""

    id: str
    position: int
    stage: str
    kind: Literal["rules", "cnn", "chain"]
    outcome: Literal["decided", "passed", "failed"]
    started_at: datetime
    duration_ms: float
    label: str | None = None
    score: float | None = None
    label_mass: float | None = None
    reason: str | None = None
    matched: tuple[str, ...] = ()
    calls: tuple[ModelCall, ...] = ()

    @property
    def usage(self) -> Usage:
        """The sum over the attempt's model calls."""
        return sum((call.usage for call in self.calls), NOTHING_USED)


class Decision(Struct, frozen=True, kw_only=True):
    """The result: decided by a stage (`accepted`), left to a person (`deferred`), or nobody could (`failed`)."""

    status: Literal["accepted", "deferred", "failed"]
    action: str | None = None
    output: dict[str, Any] | None = None
    label: str | None = None
    score: float | None = None
    stage: str | None = None
    reason: str | None = None


class Hold(Struct, frozen=True):
    """Until when a person should have decided on a held item, and what a clock does then; None: no clock does."""

    due_at: datetime
    on_expiry: Literal["deliver", "block", "escalate"] | None = None


class Sample(Struct, frozen=True):
    """A run was drawn to be looked at again: who is asked, and with which probability it was drawn."""

    asks: Literal["llm", "people"]
    probability: float


class Inference(Struct, frozen=True, kw_only=True):
    """The whole story of one request: what was asked, the attempts, the decision. The unit that the ledger records."""

    invocation: Invocation
    decision: Decision
    attempts: tuple[Attempt, ...] = ()
    cache: CacheStatus = "miss"
    duration_ms: float = 0.0
    review_id: str | None = None
    hold: Hold | None = None
    sample: Sample | None = None

    @property
    def id(self) -> str:
        """The run id that callers see."""
        return self.invocation.id

    @property
    def usage(self) -> Usage:
        """The sum over all attempts."""
        return sum((attempt.usage for attempt in self.attempts), NOTHING_USED)

    @property
    def upstream_ms(self) -> float:
        """Time spent waiting for model servers."""
        return sum(call.duration_ms for attempt in self.attempts for call in attempt.calls)


class RateHeader(Struct, frozen=True):
    """The state of the tightest quota of a resource, as the `x-ratelimit-*` headers show it."""

    resource: str
    limit: int
    remaining: int
    reset_s: float


class Lap(NamedTuple):
    """A step of the engine, in readings of the clock's `monotonic_s`."""

    name: str
    start_s: float
    end_s: float


class Answer(Struct, frozen=True):
    """What the engine hands back: the inference, what the door saw of the quotas, and the steps in their order.

    `replayed`: recorded before, under the same Idempotency-Key. `degraded`: the store of the quotas was away.
    """

    inference: Inference
    rates: tuple[RateHeader, ...] = field(default=())
    replayed: bool = False
    degraded: bool = False
    laps: tuple[Lap, ...] = ()


Metadata = Mapping[str, Any]
