"""Secrets of webhooks overlap: the one before goes on signing for a while."""

import sqlalchemy as sa
from alembic import op

from gateway.adapters.sql.types import Instant

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the former secret and its end."""
    op.add_column("webhook", sa.Column("former_secret", sa.Text()))
    op.add_column("webhook", sa.Column("former_until", Instant()))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("webhook", "former_until")
    op.drop_column("webhook", "former_secret")
