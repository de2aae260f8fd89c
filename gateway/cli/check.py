"""gateway check."""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.core.errors import GatewayError
from gateway.core.prices import from_nano

if TYPE_CHECKING:
    from gateway.core.examples import ExamplesRun
    from gateway.core.registry import Registry


@click.command()
@click.option("--promote", is_flag=True, help="Also refuse artifacts whose report misses the bars of [gate].")
@click.option("--online", is_flag=True, help="Also ask the model servers what they serve, and run the examples.")
def check(online: bool, promote: bool) -> None:
    """Read tasks, prompts and models as the gateway would. Every problem is reported; status 2 if there is any."""
    from gateway.app import load_registry

    settings = process_settings.read(os.environ)
    registry = load_registry(settings)
    if promote:
        _refuse_missed_bars(registry, settings.home_path / "tasks")
    if not online:
        Console().print(_offline(registry))
        return
    from gateway.app import check_online

    try:
        checked = asyncio.run(check_online(settings))
    except GatewayError as error:
        raise click.ClickException(error.detail) from error
    Console().print(_online(checked.examples))
    click.echo(_spent(checked.examples, checked.recorded))
    for difference in checked.differences:
        click.echo(difference, err=True)
    if checked.differences or not all(run.good for run in checked.examples.values()):
        sys.exit(2)


def _refuse_missed_bars(registry: "Registry", tasks: Path) -> None:
    from gateway.core.problems import InvalidConfig
    from gateway.lab.gate import gate_problems

    problems = [p for name, task in sorted(registry.tasks.items()) for p in gate_problems(task, tasks / name)]
    if problems:
        raise InvalidConfig(problems)


def _offline(registry: "Registry") -> Table:
    table = Table("task", "owner", "stages", "fingerprint", "examples")
    for name, task in sorted(registry.tasks.items()):
        stages = " → ".join(step.stage.name for step in task.steps)
        table.add_row(name, task.declared.owner, stages, task.fingerprint, str(len(task.examples)))
    return table


def _spent(runs: "dict[str, ExamplesRun]", recorded: bool) -> str:
    calls = sum(run.calls for run in runs.values())
    cost = from_nano(sum(run.usage.cost_nano for run in runs.values()))
    none = "in no ledger: GATEWAY_DATABASE_URL is not set"
    where = "in the ledger as canaries, paid by the platform" if recorded else none
    return f"{calls} model call(s), cost {cost}, {where}"


def _online(runs: "dict[str, ExamplesRun]") -> Table:
    table = Table("task", "examples right", "floor", "wrong")
    for name, run in sorted(runs.items()):
        floor = "all" if run.floor is None else f"{run.floor:.0%}"
        table.add_row(name, f"{run.right}/{run.total}", floor, "\n".join(run.wrong))
    return table
