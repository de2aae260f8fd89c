"""Every table. The migrations build them; a test proves that both say the same.

`inference`, `attempt` and `model_call` are the ledger: written once, never updated (a trigger refuses), deleted only by
retention. On Postgres they are range-partitioned by month on their UUIDv7 id, so they carry no foreign keys: a
partition that retention drops must not be held by another. Money is BIGINT nano-dollars. Text of messages lives in
`review_text`, in `audit_sample` until a sampled run was looked at, and nowhere else.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from gateway.adapters.sql.types import Id, Instant, Json

LEDGER = ("inference", "attempt", "model_call")
MONEY = ("usage_close", "price_adjustment", "gpu_share")
APPEND_ONLY = (*LEDGER, *MONEY, "feedback", "review", "review_event", "audit_log")
PLATFORM_TEAM = "platform"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _usage() -> tuple[Column[int], ...]:
    return (
        Column("input_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("cost_nano", BigInteger, nullable=False),
    )


def _by_the_hour() -> tuple[Column[int], ...]:
    """For models that are paid by the GPU-hour: the rate, and what budgets count until the hour is shared out."""
    return Column("gpu_hour_nano", BigInteger), Column("provisional_nano", BigInteger)


def _not_negative() -> CheckConstraint:
    return CheckConstraint("input_tokens >= 0 AND output_tokens >= 0 AND cost_nano >= 0", name="usage_not_negative")


def _by_time(table: str, column: str) -> Index:
    """Rows come in order of time: a block range index finds a month and costs the writer next to nothing."""
    return Index(f"ix_{table}_{column}", column, postgresql_using="brin")


def _where_given(table: str, column: str) -> Index:
    """Few rows have it, so only those are indexed."""
    given = text(f"{column} IS NOT NULL")
    return Index(f"ix_{table}_{column}", column, postgresql_where=given, sqlite_where=given)


inference = Table(
    "inference",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("parent_id", Id),
    Column("task", String(63), nullable=False),
    Column("fingerprint", String(64)),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("payer_team", String(63), nullable=False),
    Column("key_id", String(36), nullable=False),
    Column("item_id", Text),
    Column("thread_id", Text),
    Column("subject_id", Text),
    Column("tags", Json),
    Column("input_hash", LargeBinary),
    Column("idempotency_key", Text),
    Column("cache", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("action", Text),
    Column("label", Text),
    Column("policies", Json),
    Column("severity", SmallInteger),
    Column("score", Double),
    Column("stage", String(63)),
    Column("reason", Text),
    *_usage(),
    Column("duration_ms", Double, nullable=False),
    Column("upstream_ms", Double, nullable=False),
    Column("trace_id", String(32)),
    Column("review_id", Id),
    Column("received_at", Instant, nullable=False),
    _not_negative(),
    _by_time("inference", "received_at"),
    *(_where_given("inference", column) for column in ("parent_id", "item_id", "thread_id", "subject_id", "review_id")),
    postgresql_partition_by="RANGE (id)",
    sqlite_with_rowid=False,
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", Id, primary_key=True),
    Column("inference_id", Id, nullable=False, index=True),
    Column("task", String(63), nullable=False),
    Column("position", SmallInteger, nullable=False),
    Column("stage", String(63), nullable=False),
    Column("stage_kind", String(16), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("label", Text),
    Column("score", Double),
    Column("label_mass", Double),
    Column("reason", Text),
    Column("matched", Json),
    *_usage(),
    Column("started_at", Instant, nullable=False),
    Column("duration_ms", Double, nullable=False),
    _not_negative(),
    postgresql_partition_by="RANGE (id)",
    sqlite_with_rowid=False,
)

# Who pays for what stands in the row itself: a bill needs no join, and no row of another table that retention took.
model_call = Table(
    "model_call",
    metadata,
    Column("id", Id, primary_key=True),
    Column("attempt_id", Id, nullable=False),
    Column("inference_id", Id, nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("task", String(63), nullable=False),
    Column("stage", String(63), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("payer_team", String(63), nullable=False),
    Column("key_id", String(36), nullable=False),
    Column("model", Text, nullable=False),
    Column("replica", Text, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("settled", Boolean, nullable=False),
    *_usage(),
    Column("http_status", SmallInteger),
    Column("started_at", Instant, nullable=False),
    Column("duration_ms", Double, nullable=False),
    *_by_the_hour(),
    _not_negative(),
    _by_time("model_call", "started_at"),
    postgresql_partition_by="RANGE (id)",
    sqlite_with_rowid=False,
)

intent = Table(
    "intent",
    metadata,
    Column("id", Id, primary_key=True),
    Column("inference_id", Id, nullable=False),
    Column("attempt_id", Id, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("task", String(63), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("payer_team", String(63), nullable=False),
    Column("key_id", String(36), nullable=False),
    Column("model", Text, nullable=False),
    Column("replica", Text, nullable=False),
    *_usage(),
    Column("created_at", Instant, nullable=False),
    *_by_the_hour(),
    _not_negative(),
)

team = Table(
    "team",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("limits", Json),
    Column("created_at", Instant, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("team", String(63), ForeignKey("team.name"), nullable=False, index=True),
    Column("scopes", Json, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)

# Two tasks that are copies of each other have the same fingerprint.
fingerprint = Table(
    "fingerprint",
    metadata,
    Column("fingerprint", String(64), nullable=False),
    Column("task", String(63), nullable=False),
    Column("config", Json, nullable=False),
    Column("first_seen", Instant, nullable=False),
    PrimaryKeyConstraint("task", "fingerprint"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Id, primary_key=True),
    Column("inference_id", Id, nullable=False, index=True),
    Column("team", String(63), nullable=False),
    Column("key_id", String(36), nullable=False),
    Column("label", Text),
    Column("comment", Text),
    Column("created_at", Instant, nullable=False),
)

# The question as it was put. What became of it is the sum of its events; runs that share it name it in `review_id`.
review = Table(
    "review",
    metadata,
    Column("id", Id, primary_key=True),
    Column("inference_id", Id, nullable=False, index=True),
    Column("task", String(63), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("input_hash", LargeBinary, nullable=False),
    Column("thread_id", Text),
    Column("subject_id", Text),
    Column("status", String(16), nullable=False),
    Column("label", Text),
    Column("policies", Json),
    Column("severity", SmallInteger),
    Column("score", Double),
    Column("stage", String(63)),
    Column("reason", Text),
    Column("created_at", Instant, nullable=False),
    Column("due_at", Instant),
    Column("item_id", Id),
    Index("ix_review_task_caller_team_input_hash", "task", "caller_team", "input_hash"),
    *(_where_given("review", column) for column in ("subject_id", "item_id")),
)

# The sum of a question's events, as core's Item has it: the queue is read from here, and every change of a row is
# written with the event that says so. `join_key` is set while runs with the same input join the question.
review_item = Table(
    "review_item",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("root_id", Id, nullable=False, index=True),
    Column("task", String(63), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("join_key", LargeBinary),
    Column("near", BigInteger),
    Column("state", String(16), nullable=False),
    Column("position", Integer, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("severity", SmallInteger),
    Column("score", Double),
    Column("policies", Json),
    Column("stage", String(63)),
    Column("recommended", String(16)),
    Column("created_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("on_expiry", String(16)),
    Column("rank_at", Instant, nullable=False),
    Column("lease_token", String(43)),
    Column("lease_key", String(36)),
    Column("lease_until", Instant),
    Column("skips", Integer, nullable=False),
    Column("barred", Text, nullable=False),
    Column("decision", Json),
    Column("outcome", String(16)),
    Column("decided_at", Instant),
    Column("undo_until", Instant),
    Column("closed_at", Instant),
    Column("escalated", Boolean, nullable=False),
    Column("appealed", Boolean, nullable=False),
    Column("gold", Boolean, nullable=False),
    Index("uq_review_item_join_key", "join_key", unique=True),
    Index("ix_review_item_owner_team_state_rank_at", "owner_team", "state", "rank_at"),
    Index("ix_review_item_state_due_at", "state", "due_at"),
)

review_text = Table(
    "review_text",
    metadata,
    Column("review_id", Id, ForeignKey("review.id"), primary_key=True),
    Column("subject_id", Text),
    Column("input", Text, nullable=False),
    Column("created_at", Instant, nullable=False, index=True),
    Column("expires_at", Instant),
    _where_given("review_text", "subject_id"),
)

# `position` counts the events of one review from 1: two writers that both append the next one cannot both succeed.
review_event = Table(
    "review_event",
    metadata,
    Column("id", Id, primary_key=True),
    Column("review_id", Id, ForeignKey("review.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("event", String(32), nullable=False),
    Column("actor_team", String(63)),
    Column("actor_key_id", String(36)),
    Column("detail", Json),
    Column("created_at", Instant, nullable=False, index=True),
    Index("uq_review_event_review_id_position", "review_id", "position", unique=True),
)

# Free words of who took a step: they may repeat the text, so they can be erased, as the text can and the step cannot.
review_note = Table(
    "review_note",
    metadata,
    Column("event_id", Id, ForeignKey("review_event.id"), primary_key=True),
    Column("review_id", Id, nullable=False, index=True),
    Column("note", Text, nullable=False),
    Column("created_at", Instant, nullable=False, index=True),
)

# Runs that were drawn to be looked at again, written with the inference. The text is here until that was done.
audit_sample = Table(
    "audit_sample",
    metadata,
    Column("id", Id, primary_key=True),
    Column("task", String(63), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("subject_id", Text),
    Column("stage", String(63), nullable=False),
    Column("label", Text),
    Column("score", Double),
    Column("asks", String(16), nullable=False),
    Column("probability", Double, nullable=False),
    Column("input", Text),
    Column("status", String(16), nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("reason", Text),
    Column("verdict", String(16)),
    Column("audit_id", Id),
    Column("people_probability", Double),
    Column("review_id", Id),
    Index("ix_audit_sample_status_due_at", "status", "due_at"),
    Index("ix_audit_sample_task_created_at", "task", "created_at"),
    _where_given("audit_sample", "subject_id"),
)

# What drifted, once per window: who writes the row tells of it.
drift = Table(
    "drift",
    metadata,
    Column("task", String(63), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("what", String(80), nullable=False),
    Column("window_start", Instant, nullable=False),
    Column("index", Double, nullable=False),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("task", "fingerprint", "what", "window_start"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Id, primary_key=True),
    Column("actor_team", String(63)),
    Column("actor_key_id", String(36)),
    Column("act", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Json),
    Column("created_at", Instant, nullable=False, index=True),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("team", String(63), nullable=False),
    Column("task", String(63), nullable=False),
    Column("key", Text, nullable=False),
    Column("body_hash", LargeBinary, nullable=False),
    Column("inference_id", Id, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("outcome", LargeBinary),
    PrimaryKeyConstraint("team", "task", "key"),
)

# Sums of closed days in the billing timezone. `model` is empty in the row that counts the inferences themselves, as in
# core's UsageRow, so that every column may be summed.
usage_day = Table(
    "usage_day",
    metadata,
    Column("day", Date, nullable=False),
    Column("payer_team", String(63), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("task", String(63), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("stage", String(63), nullable=False),
    Column("model", Text, nullable=False),
    Column("inferences", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("model_calls", BigInteger, nullable=False),
    *_usage(),
    Column("unsettled_nano", BigInteger, nullable=False),
    Column("closed_at", Instant, nullable=False),
    PrimaryKeyConstraint("day", "payer_team", "caller_team", "owner_team", "task", "kind", "stage", "model"),
)

# A month's export as it was handed over, by the month's first day.
usage_close = Table(
    "usage_close",
    metadata,
    Column("month", Date, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("closed_at", Instant, nullable=False),
)

# Money given back or asked for later: it counts on `day`, and `corrects` is the day it is about. `position` counts the
# adjustments of one line: of two corrections at once, one is refused. The prices are those that should have held: per
# million tokens, or of an hour of the model's GPUs.
price_adjustment = Table(
    "price_adjustment",
    metadata,
    Column("id", Id, primary_key=True),
    Column("day", Date, nullable=False, index=True),
    Column("corrects", Date, nullable=False),
    Column("payer_team", String(63), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("task", String(63), nullable=False),
    Column("model", Text, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("position", Integer),
    Column("input_per_million_nano", BigInteger),
    Column("output_per_million_nano", BigInteger),
    Column("per_hour_nano", BigInteger),
    Index(
        "uq_price_adjustment_line",
        *("corrects", "model", "payer_team", "caller_team", "owner_team", "task", "position"),
        unique=True,
    ),
)

# Where a team hears of outcomes. `secret` is a reference (`env:`, `file:`) or the secret itself; so is the one before.
webhook = Table(
    "webhook",
    metadata,
    Column("team", String(63), ForeignKey("team.name"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("former_secret", Text),
    Column("former_until", Instant),
)

# The outbox: written in the transaction of the outcome that it tells of.
webhook_message = Table(
    "webhook_message",
    metadata,
    Column("id", Id, primary_key=True),
    Column("team", String(63), nullable=False),
    Column("review_id", Id, nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("error", Text),
    Column("created_at", Instant, nullable=False),
    Column("delivered_at", Instant),
    Index("ix_webhook_message_status_due_at", "status", "due_at"),
)

# An hour of a model's GPUs, shared out: all rows of an hour are written at once, and their costs sum to its bill. The
# row of the platform team without a task is the idle part.
gpu_share = Table(
    "gpu_share",
    metadata,
    Column("model", Text, nullable=False),
    Column("hour", Instant, nullable=False),
    Column("hour_end", Instant, nullable=False),
    Column("day", Date, nullable=False, index=True),
    Column("payer_team", String(63), nullable=False),
    Column("caller_team", String(63), nullable=False),
    Column("owner_team", String(63), nullable=False),
    Column("task", String(63), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("bill_nano", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("model", "hour", "payer_team", "caller_team", "owner_team", "task"),
)

# Tokens of prompts that were not sent, of a random sample of what cheap stages and the cache answered. No text.
prompt_sample = Table(
    "prompt_sample",
    metadata,
    Column("inference_id", Id, primary_key=True),
    Column("task", String(63), nullable=False),
    Column("model", Text, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("received_at", Instant, nullable=False, index=True),
)
