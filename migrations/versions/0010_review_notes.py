"""Free words of reviewers and callers lie apart from the events, which are never changed: they can be erased."""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Id, Instant

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.create_table(
        "review_note",
        sa.Column("event_id", Id(), nullable=False),
        sa.Column("review_id", Id(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["event_id"], ["review_event.id"], name="fk_review_note_event_id"),
        sa.PrimaryKeyConstraint("event_id", name="pk_review_note"),
    )
    op.create_index("ix_review_note_review_id", "review_note", ["review_id"])
    op.create_index("ix_review_note_created_at", "review_note", ["created_at"])


def downgrade() -> None:
    """Remove them."""
    op.drop_table("review_note")
