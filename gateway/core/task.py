"""What teams declare: a task, its stages, quotas and policies; and what the platform declares: models and prices.

A value of these types is what a file said, with every key known and every type right. What the fields mean together
(labels that exist, thresholds in order, files that are there) is the registry's to judge.
"""

from datetime import date
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Probability = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Resource = Literal["requests", "tokens", "cost", "concurrency"]
Per = Literal["second", "minute", "hour", "day", "month"]
Scope = Literal["task", "caller_team", "key"]


class Declared(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that is read from a file."""


class RulesStage(Declared, frozen=True, tag_field="kind", tag="rules"):
    """Patterns on the normalised text of `text` (a field of the input). A match says the rule's label; none passes."""

    name: Name
    file: str
    text: str = "message"
    decides: tuple[str, ...] | None = None


class CnnStage(Declared, frozen=True, tag_field="kind", tag="cnn"):
    """The prefilter. Text is read from `text` (a field of the input); what it cannot read whole passes."""

    name: Name
    weights: str
    text: str = "message"
    decides: tuple[str, ...] | None = None
    accept_below: Probability | None = None
    accept_above: Probability | None = None


class Fallback(Declared, frozen=True):
    """Another model that answers where the stage's own cannot. Its scores need a calibration of their own."""

    model: str
    adapter: str | None = None
    calibration: str | None = None


class ChainStage(Declared, frozen=True, tag_field="kind", tag="chain"):
    """A LangChain chain to a model. `labels` and `policies` map a name to the one token that stands for it."""

    name: Name
    prompt: str
    model: str
    answer: Literal["label", "text", "json"] = "label"
    adapter: str | None = None
    labels: dict[str, str] = {}
    policies: dict[str, str] = {}
    calibration: str | None = None
    decides: tuple[str, ...] | None = None
    accept_below: Probability | None = None
    accept_above: Probability | None = None
    min_label_mass: Probability = 0.9
    timeout_s: Seconds = 3.0
    deadline_s: Seconds = 5.0
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
    max_input_chars: Annotated[int, Meta(gt=0)] = 4000
    max_output_tokens: Annotated[int, Meta(gt=0)] = 256
    hedge_after_s: Seconds | None = None
    fallback: tuple[Fallback, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that may be asked, in order."""
        return (self.model, *(each.model for each in self.fallback))


Stage = RulesStage | CnnStage | ChainStage


class Policy(Declared, frozen=True):
    """One reason for which the positive label is given, with the text that reviewers and callers can read."""

    severity: Annotated[int, Meta(ge=1, le=3)]
    text: str


class Quota(Declared, frozen=True):
    """`limit` of `resource` per window. Money is a decimal string ("200.00"), everything else an integer."""

    resource: Resource
    limit: int | str
    scope: tuple[Scope, ...]
    per: Per | None = None


class Cache(Declared, frozen=True):
    """How long accepted answers are kept, and who shares them."""

    ttl_s: Annotated[int, Meta(gt=0)]
    scope: Literal["team", "task"] = "team"


class Audit(Declared, frozen=True):
    """How what cheap stages cleared is looked at again, off the response path.

    `sample` is the share that is sent on to the LLM, at most `per_day` of them; `review` the share of what the LLM
    clears too that people are asked about. They are asked about everything that it does not clear.
    """

    sample: Probability
    review: Probability = 0.1
    per_day: Annotated[int, Meta(gt=0)] = 5000


class Review(Declared, frozen=True):
    """How held items are put to people, and the share `sample` of what no cheap stage cleared and nobody holds.

    `second` is the share of decisions that another reviewer makes again without seeing the first; blocks of at least
    `second_severity` are always made again. `gold` is the share of turns in which a reviewer gets a known item.
    """

    sample: Probability = 0.0
    sla_minutes: Annotated[int, Meta(gt=0)] = 60
    on_expiry: Literal["block", "deliver", "escalate"] = "escalate"
    second: Probability = 0.0
    second_severity: Annotated[int, Meta(ge=1, le=3)] | None = None
    gold: Probability = 0.0


class Gate(Declared, frozen=True):
    """The bars that artifacts must clear before `gateway check --promote` lets them through."""

    auc: Probability | None = None
    recall: Probability | None = None
    accuracy: Probability | None = None


class Task(Declared, frozen=True):
    """`tasks/<name>/task.toml`."""

    owner: Name
    description: str
    input: str
    output: str
    stage: tuple[Stage, ...]
    positive: str | None = None
    payer: Literal["caller", "owner"] = "caller"
    callers: tuple[str, ...] = ("*",)
    actions: dict[str, str] = {}
    policy: dict[str, Policy] = {}
    quota: tuple[Quota, ...] = ()
    cache: Cache | None = None
    audit: Audit | None = None
    review: Review | None = None
    gate: Gate | None = None


class Price(Declared, frozen=True):
    """What a model costs from a date (UTC) on, in the billing currency: per million tokens, or per hour of a GPU.

    Amounts are decimal strings. `gpus` run, and are paid for, whether the model is called or not; each does at most
    `tokens_per_gpu_hour`, input and output together.
    """

    start: date = field(name="from")
    input_per_million: str | None = None
    output_per_million: str | None = None
    per_gpu_hour: str | None = None
    gpus: Annotated[int, Meta(ge=1)] = 1
    tokens_per_gpu_hour: Annotated[int, Meta(ge=1)] | None = None


class Model(Declared, frozen=True):
    """One entry of `models.toml`. `key` is a reference (`env:NAME`, `file:/path`), never the secret itself; `callers`
    are the teams that may ask the model without a task.
    """

    kind: Literal["tgi", "openai"]
    urls: tuple[str, ...]
    model_id: str
    price: tuple[Price, ...]
    revision: str | None = None
    adapter: str | None = None
    key: str | None = None
    chat_format: str = "chatml"
    tokenizer: str | None = None
    max_top_n_tokens: Annotated[int, Meta(ge=1)] = 5
    max_input_tokens: Annotated[int, Meta(gt=0)] = 4096
    max_concurrency: Annotated[int, Meta(gt=0)] = 64
    callers: tuple[str, ...] = ()


class Example(Declared, frozen=True):
    """One line of `examples.jsonl`: an input, and what its answer must be.

    Where stages give labels that is the `label`; elsewhere the output is valid under the task's schema, its fields are
    those of `output` as far as they stand there, and its text `holds` and `lacks` fragments, in whatever case.
    With `canary` every replica of the task's models is asked it, again and again: one that says another label is taken
    out. So mark what the model is sure of, one for each label.
    """

    input: dict[str, object]
    label: str | None = None
    output: dict[str, object] = {}
    holds: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    canary: bool = False
