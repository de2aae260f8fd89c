"""The `gateway lab` group, and how its subcommands are made."""

import logging
from collections.abc import Callable
from typing import Any

import click
import msgspec
import structlog
from rich.console import Console

from gateway.core.problems import Unusable


class _Lab(click.Group):
    """What the disk refuses is said like all else that cannot be used: its reason, status 2, no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unusable(str(error)) from error


@click.group(cls=_Lab)
@click.pass_context
def lab(ctx: click.Context) -> None:
    """Train, calibrate, evaluate and attack; every run leaves a folder."""
    if not structlog.is_configured():
        # A stage that fails on one of ten thousand rows is a number in the report, not a line on the terminal.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        ctx.call_on_close(structlog.reset_defaults)


def command(*shared: Callable[..., Any], name: str | None = None) -> Callable[..., click.Command]:
    """A subcommand of `lab` with options that others have too."""

    def decorate(function: Callable[..., None]) -> click.Command:
        run = function
        for option in reversed(shared):
            run = option(run)
        return lab.command(name or function.__name__.replace("_", "-"))(run)

    return decorate


def show(value: Any) -> None:
    """A value as JSON on the terminal."""
    Console().print_json(msgspec.json.encode(value).decode())
