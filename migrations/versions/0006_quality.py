"""Runs that are drawn to be looked at again, and what drifted."""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Id, Instant

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_GIVEN = sa.text("subject_id IS NOT NULL")


def upgrade() -> None:
    """Add them."""
    op.create_table(
        "audit_sample",
        sa.Column("id", Id(), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("stage", sa.String(length=63), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("asks", sa.String(length=16), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("input", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("audit_id", Id(), nullable=True),
        sa.Column("people_probability", sa.Double(), nullable=True),
        sa.Column("review_id", Id(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_sample"),
    )
    for columns in (["status", "due_at"], ["task", "created_at"]):
        op.create_index(f"ix_audit_sample_{'_'.join(columns)}", "audit_sample", columns)
    op.create_index(
        "ix_audit_sample_subject_id", "audit_sample", ["subject_id"], postgresql_where=_GIVEN, sqlite_where=_GIVEN
    )
    op.create_table(
        "drift",
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("what", sa.String(length=80), nullable=False),
        sa.Column("window_start", Instant(), nullable=False),
        sa.Column("index", sa.Double(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("task", "fingerprint", "what", "window_start", name="pk_drift"),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("drift")
    op.drop_table("audit_sample")
