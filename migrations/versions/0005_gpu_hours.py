"""Models that are paid by the GPU-hour: the rate on each call, what budgets count meanwhile, hours shared out."""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Instant

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ADDED = ("gpu_hour_nano", "provisional_nano")


def upgrade() -> None:
    """Add them. No `ALTER` in batch here: SQLite would lose the triggers with the tables that it makes anew."""
    for table in ("model_call", "intent"):
        for name in ADDED:
            op.add_column(table, sa.Column(name, sa.BigInteger()))
    op.create_table(
        "gpu_share",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("hour", Instant(), nullable=False),
        sa.Column("hour_end", Instant(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("payer_team", sa.String(length=63), nullable=False),
        sa.Column("caller_team", sa.String(length=63), nullable=False),
        sa.Column("owner_team", sa.String(length=63), nullable=False),
        sa.Column("task", sa.String(length=63), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("bill_nano", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint(
            "model", "hour", "payer_team", "caller_team", "owner_team", "task", name="pk_gpu_share"
        ),
    )
    op.create_index("ix_gpu_share_day", "gpu_share", ["day"], unique=False)
    _protect("gpu_share")


def downgrade() -> None:
    """Remove them."""
    op.drop_table("gpu_share")
    for table in ("model_call", "intent"):
        for name in reversed(ADDED):
            op.drop_column(table, name)


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
