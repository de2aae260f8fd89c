"""Reviews reach people: the queue, and the outbox of webhooks. Held items from before have no deadline of a clock.

Whoever still runs the old code writes reviews without an item; the review sweep of the new code adopts them.
"""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Id, Instant, Json

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_GIVEN = sa.text("item_id IS NOT NULL")


def upgrade() -> None:
    """Add them."""
    op.add_column("review", sa.Column("item_id", Id(), nullable=True))
    op.create_index("ix_review_item_id", "review", ["item_id"], postgresql_where=_GIVEN, sqlite_where=_GIVEN)
    op.create_table(
        "review_item",
        sa.Column("id", Id(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("root_id", Id(), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("join_key", sa.LargeBinary(), nullable=True),
        sa.Column("near", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("severity", sa.SmallInteger(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("policies", Json, nullable=True),
        sa.Column("stage", sa.String(length=63), nullable=True),
        sa.Column("recommended", sa.String(length=16), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("on_expiry", sa.String(length=16), nullable=True),
        sa.Column("rank_at", Instant(), nullable=False),
        sa.Column("lease_token", sa.String(length=43), nullable=True),
        sa.Column("lease_key", sa.String(length=36), nullable=True),
        sa.Column("lease_until", Instant(), nullable=True),
        sa.Column("skips", sa.Integer(), nullable=False),
        sa.Column("barred", sa.Text(), nullable=False),
        sa.Column("decision", Json, nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("decided_at", Instant(), nullable=True),
        sa.Column("undo_until", Instant(), nullable=True),
        sa.Column("closed_at", Instant(), nullable=True),
        sa.Column("escalated", sa.Boolean(), nullable=False),
        sa.Column("appealed", sa.Boolean(), nullable=False),
        sa.Column("gold", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_review_item"),
    )
    op.create_index("ix_review_item_root_id", "review_item", ["root_id"])
    op.create_index("uq_review_item_join_key", "review_item", ["join_key"], unique=True)
    op.create_index("ix_review_item_owner_team_state_rank_at", "review_item", ["owner_team", "state", "rank_at"])
    op.create_index("ix_review_item_state_due_at", "review_item", ["state", "due_at"])
    op.create_table(
        "webhook",
        sa.Column("team", sa.String(length=63), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["team"], ["team.name"], name="fk_webhook_team"),
        sa.PrimaryKeyConstraint("team", name="pk_webhook"),
    )
    op.create_table(
        "webhook_message",
        sa.Column("id", Id(), nullable=False),
        sa.Column("team", sa.String(length=63), nullable=False),
        sa.Column("review_id", Id(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("delivered_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_message"),
    )
    op.create_index("ix_webhook_message_review_id", "webhook_message", ["review_id"])
    op.create_index("ix_webhook_message_status_due_at", "webhook_message", ["status", "due_at"])


def downgrade() -> None:
    """Remove them."""
    op.drop_table("webhook_message")
    op.drop_table("webhook")
    op.drop_table("review_item")
    op.drop_index("ix_review_item_id", "review")
    op.drop_column("review", "item_id")
