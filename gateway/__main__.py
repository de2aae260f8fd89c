"""The `gateway` command."""

import sys

import click
from rich.console import Console

from gateway.cli.lazy import LazyGroup
from gateway.core.problems import InvalidConfig, Unusable

COMMANDS = {
    "serve": ("gateway.cli.serve", "Serve the HTTP API."),
    "dev": ("gateway.cli.serve", "Serve with an embedded Valkey, SQLite and the local LLM server."),
    "demo": ("gateway.cli.serve", "Send the demo messages through `dev` and show what happens."),
    "check": ("gateway.cli.check", "Check tasks, prompts and models; report every problem."),
    "teams": ("gateway.cli.access", "Teams."),
    "keys": ("gateway.cli.access", "API keys."),
    "audit": ("gateway.cli.audit", "What administrators did."),
    "quality": ("gateway.cli.quality", "Is the machine right, beside what it costs."),
    "task": ("gateway.cli.task", "Versions of a task: their history, and what changed."),
    "usage": ("gateway.cli.usage", "What was spent: reports, exports, closed months."),
    "ledger": ("gateway.cli.ledger", "Prove that every sum agrees with every other."),
    "reviews": ("gateway.cli.reviews", "Held items: the queue, its history, exported labels."),
    "webhooks": ("gateway.cli.webhooks", "Where teams hear of outcomes; what they were told."),
    "privacy": ("gateway.cli.reviews", "Erase a person's texts."),
    "db": ("gateway.cli.db", "The database schema."),
    "model": ("gateway.cli.model", "The local LLM: fetch and serve."),
    "lab": ("gateway.cli.lab", "Train, calibrate and evaluate."),
}


@click.command(cls=LazyGroup, commands_by_module=COMMANDS)
@click.version_option(package_name="taskgate")
def cli() -> None:
    """Taskgate: a centralized LLM gateway for many teams."""


def main() -> None:
    """Entry point. Problems in what people wrote end with status 2 and the full list, never with a traceback."""
    try:
        cli(prog_name="gateway")
    except Unusable as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        if isinstance(error, InvalidConfig):
            console.print(f"[bold red]{len(error.problems)} problem(s)[/]")
        console.out(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
