"""Corrections of prices: their place in the line of one day's adjustments, and the price that should have held."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LINE = ["corrects", "model", "payer_team", "caller_team", "owner_team", "task", "position"]
ADDED = ("position", "input_per_million_nano", "output_per_million_nano")


def upgrade() -> None:
    """Add them. No `ALTER` in batch here: SQLite would lose the trigger with the table that it makes anew."""
    for name in ADDED:
        op.add_column("price_adjustment", sa.Column(name, sa.Integer() if name == "position" else sa.BigInteger()))
    op.create_index("uq_price_adjustment_line", "price_adjustment", LINE, unique=True)


def downgrade() -> None:
    """Remove them."""
    op.drop_index("uq_price_adjustment_line", "price_adjustment")
    for name in reversed(ADDED):
        op.drop_column("price_adjustment", name)
