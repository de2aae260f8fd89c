"""Alembic's entry: run the migrations on the connection that `gateway.adapters.sql.migrate` opened and commits."""

from alembic import context

from gateway.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=False,
)
context.run_migrations()
