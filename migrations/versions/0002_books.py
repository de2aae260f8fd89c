"""The books: what an Idempotency-Key was answered, months that are closed, corrections of prices.

Closed months and corrections are append-only: a trigger refuses to change them.
"""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Id, Instant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPEND_ONLY = ("usage_close", "price_adjustment")


def upgrade() -> None:
    """Add them."""
    with op.batch_alter_table("idempotency") as table:
        table.add_column(sa.Column("outcome", sa.LargeBinary(), nullable=True))
    op.create_table(
        "usage_close",
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("closed_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("month", name="pk_usage_close"),
    )
    op.create_table(
        "price_adjustment",
        sa.Column("id", Id(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("corrects", sa.Date(), nullable=False),
        sa.Column("payer_team", sa.String(length=63), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_price_adjustment"),
    )
    op.create_index("ix_price_adjustment_day", "price_adjustment", ["day"], unique=False)
    for table_name in APPEND_ONLY:
        _protect(table_name)


def downgrade() -> None:
    """Remove them."""
    for table_name in APPEND_ONLY:
        op.drop_table(table_name)
    with op.batch_alter_table("idempotency") as table:
        table.drop_column("outcome")


def _protect(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        name = f"{table}_append_only" if event == "UPDATE" else f"{table}_kept"
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
