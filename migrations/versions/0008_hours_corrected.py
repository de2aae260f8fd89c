"""Corrections of what an hour of GPUs should have cost."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the price. No `ALTER` in batch here: SQLite would lose the trigger with the table that it makes anew."""
    op.add_column("price_adjustment", sa.Column("per_hour_nano", sa.BigInteger()))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("price_adjustment", "per_hour_nano")
