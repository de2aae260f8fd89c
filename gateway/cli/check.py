"""gateway check."""

import os

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings


@click.command()
def check() -> None:
    """Read tasks, prompts and models as the gateway would, offline. Every problem is reported; status 2 if any."""
    from gateway.app import load_registry

    registry = load_registry(process_settings.read(os.environ))
    table = Table("task", "owner", "stages", "fingerprint", "examples")
    for name, task in sorted(registry.tasks.items()):
        stages = " → ".join(step.stage.name for step in task.steps)
        table.add_row(name, task.declared.owner, stages, task.fingerprint, str(len(task.examples)))
    Console().print(table)
