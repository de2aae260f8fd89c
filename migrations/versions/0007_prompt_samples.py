"""Tokens of prompts that were not sent, sampled: what all-LLM would have cost is computed from them."""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Id, Instant

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.create_table(
        "prompt_sample",
        sa.Column("inference_id", Id(), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("cached", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("received_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("inference_id", name="pk_prompt_sample"),
    )
    op.create_index("ix_prompt_sample_received_at", "prompt_sample", ["received_at"], unique=False)


def downgrade() -> None:
    """Remove them."""
    op.drop_table("prompt_sample")
