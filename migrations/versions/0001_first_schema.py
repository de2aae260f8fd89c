"""The first schema: the ledger, intents, tenants, reviews, roll-ups.

On Postgres the ledger's tables are partitioned by month on their UUIDv7 id, with a DEFAULT partition as a safety net.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Id, Instant, Json

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LEDGER = ("inference", "attempt", "model_call")
APPEND_ONLY = (*LEDGER, "feedback", "review", "review_event", "audit_log")


def upgrade() -> None:
    """Make everything, refuse changes of what is append-only, and admit the built-in team."""
    _create_tables()
    if op.get_bind().dialect.name == "postgresql":
        _protect_on_postgres()
    else:
        _protect_on_sqlite()
    team = sa.table("team", sa.column("name", sa.String), sa.column("created_at", Instant))
    op.bulk_insert(team, [{"name": "platform", "created_at": datetime.now(UTC)}])


def downgrade() -> None:
    """Remove everything."""
    for table in (
        "review_event",
        "review_text",
        "review",
        "api_key",
        "attempt",
        "audit_log",
        "feedback",
        "fingerprint",
        "idempotency",
        "inference",
        "intent",
        "model_call",
        "team",
        "usage_day",
    ):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")


def _protect_on_postgres() -> None:
    """Rows of the ledger go only with their partition; other append-only rows only by their retention or erasure."""
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in LEDGER:
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    for table in APPEND_ONLY:
        events = "UPDATE OR DELETE" if table in LEDGER else "UPDATE"
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE {events} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )


def _protect_on_sqlite() -> None:
    """DELETE stays possible: SQLite has no partitions that retention could drop instead."""
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _create_tables() -> None:
    op.create_table(
        "attempt",
        sa.Column("id", Id(), nullable=False),
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("stage", sa.String(length=63), nullable=False),
        sa.Column("stage_kind", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("label_mass", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("matched", Json, nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("started_at", Instant(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND cost_nano >= 0", name="ck_attempt_usage_not_negative"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_attempt"),
        postgresql_partition_by="RANGE (id)",
        sqlite_with_rowid=False,
    )
    op.create_index("ix_attempt_inference_id", "attempt", ["inference_id"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("id", Id(), nullable=False),
        sa.Column("actor_team", sa.String(length=63), nullable=True),
        sa.Column("actor_key_id", sa.String(length=36), nullable=True),
        sa.Column("act", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", Json, nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_created_at", "audit_log", ["created_at"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("id", Id(), nullable=False),
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("team", sa.String(length=63), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
    )
    op.create_index("ix_feedback_inference_id", "feedback", ["inference_id"], unique=False)
    op.create_table(
        "fingerprint",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("first_seen", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("task", "fingerprint", name="pk_fingerprint"),
    )
    op.create_table(
        "idempotency",
        sa.Column("team", sa.String(length=63), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("team", "task", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_expires_at", "idempotency", ["expires_at"], unique=False)
    op.create_table(
        "inference",
        sa.Column("id", Id(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("parent_id", Id(), nullable=True),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("payer_team", sa.String(length=63), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=True),
        sa.Column("thread_id", sa.Text(), nullable=True),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("tags", Json, nullable=True),
        sa.Column("input_hash", sa.LargeBinary(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("cache", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("action", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("policies", Json, nullable=True),
        sa.Column("severity", sa.SmallInteger(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("stage", sa.String(length=63), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("upstream_ms", sa.Double(), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("review_id", Id(), nullable=True),
        sa.Column("received_at", Instant(), nullable=False),
        sa.CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND cost_nano >= 0", name="ck_inference_usage_not_negative"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_inference"),
        postgresql_partition_by="RANGE (id)",
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_inference_item_id",
        "inference",
        ["item_id"],
        unique=False,
        postgresql_where=sa.text("item_id IS NOT NULL"),
        sqlite_where=sa.text("item_id IS NOT NULL"),
    )
    op.create_index(
        "ix_inference_parent_id",
        "inference",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
        sqlite_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index("ix_inference_received_at", "inference", ["received_at"], unique=False, postgresql_using="brin")
    op.create_index(
        "ix_inference_review_id",
        "inference",
        ["review_id"],
        unique=False,
        postgresql_where=sa.text("review_id IS NOT NULL"),
        sqlite_where=sa.text("review_id IS NOT NULL"),
    )
    op.create_index(
        "ix_inference_subject_id",
        "inference",
        ["subject_id"],
        unique=False,
        postgresql_where=sa.text("subject_id IS NOT NULL"),
        sqlite_where=sa.text("subject_id IS NOT NULL"),
    )
    op.create_index(
        "ix_inference_thread_id",
        "inference",
        ["thread_id"],
        unique=False,
        postgresql_where=sa.text("thread_id IS NOT NULL"),
        sqlite_where=sa.text("thread_id IS NOT NULL"),
    )
    op.create_table(
        "intent",
        sa.Column("id", Id(), nullable=False),
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("attempt_id", Id(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("payer_team", sa.String(length=63), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND cost_nano >= 0", name="ck_intent_usage_not_negative"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_intent"),
    )
    op.create_table(
        "model_call",
        sa.Column("id", Id(), nullable=False),
        sa.Column("attempt_id", Id(), nullable=False),
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("stage", sa.String(length=63), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("payer_team", sa.String(length=63), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("started_at", Instant(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND cost_nano >= 0", name="ck_model_call_usage_not_negative"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_model_call"),
        postgresql_partition_by="RANGE (id)",
        sqlite_with_rowid=False,
    )
    op.create_index("ix_model_call_inference_id", "model_call", ["inference_id"], unique=False)
    op.create_index("ix_model_call_started_at", "model_call", ["started_at"], unique=False, postgresql_using="brin")
    op.create_table(
        "review",
        sa.Column("id", Id(), nullable=False),
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("input_hash", sa.LargeBinary(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=True),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("policies", Json, nullable=True),
        sa.Column("severity", sa.SmallInteger(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("stage", sa.String(length=63), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("due_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_review"),
    )
    op.create_index("ix_review_inference_id", "review", ["inference_id"], unique=False)
    op.create_index(
        "ix_review_subject_id",
        "review",
        ["subject_id"],
        unique=False,
        postgresql_where=sa.text("subject_id IS NOT NULL"),
        sqlite_where=sa.text("subject_id IS NOT NULL"),
    )
    op.create_index(
        "ix_review_task_caller_team_input_hash", "review", ["task", "caller_team", "input_hash"], unique=False
    )
    op.create_table(
        "team",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("limits", Json, nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_team"),
    )
    op.create_table(
        "usage_day",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("payer_team", sa.String(length=63), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.String(length=63), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("inferences", sa.BigInteger(), nullable=False),
        sa.Column("cached", sa.BigInteger(), nullable=False),
        sa.Column("model_calls", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("unsettled_nano", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint(
            "day", "payer_team", "caller_team", "owner_team", "task", "kind", "stage", "model", name="pk_usage_day"
        ),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("team", sa.String(length=63), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["team"], ["team.name"], name="fk_api_key_team"),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
    )
    op.create_index("ix_api_key_team", "api_key", ["team"], unique=False)
    op.create_table(
        "review_event",
        sa.Column("id", Id(), nullable=False),
        sa.Column("review_id", Id(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("actor_team", sa.String(length=63), nullable=True),
        sa.Column("actor_key_id", sa.String(length=36), nullable=True),
        sa.Column("detail", Json, nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["review_id"], ["review.id"], name="fk_review_event_review_id"),
        sa.PrimaryKeyConstraint("id", name="pk_review_event"),
    )
    op.create_index("ix_review_event_created_at", "review_event", ["created_at"], unique=False)
    op.create_index("uq_review_event_review_id_position", "review_event", ["review_id", "position"], unique=True)
    op.create_table(
        "review_text",
        sa.Column("review_id", Id(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["review_id"], ["review.id"], name="fk_review_text_review_id"),
        sa.PrimaryKeyConstraint("review_id", name="pk_review_text"),
    )
    op.create_index("ix_review_text_created_at", "review_text", ["created_at"], unique=False)
    op.create_index(
        "ix_review_text_subject_id",
        "review_text",
        ["subject_id"],
        unique=False,
        postgresql_where=sa.text("subject_id IS NOT NULL"),
        sqlite_where=sa.text("subject_id IS NOT NULL"),
    )
