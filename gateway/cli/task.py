"""gateway task."""

import os
from typing import TYPE_CHECKING, Any

import click

from gateway import settings as process_settings
from gateway.cli.access import database_url, finish

if TYPE_CHECKING:
    from gateway.core.loaded import LoadedTask

_TREE = "tree"


@click.group()
def task() -> None:
    """Versions of a task. A version is named by its fingerprint, as every run and every answer names it."""


@task.command()
@click.argument("name")
def history(name: str) -> None:
    """Every version of the task NAME that was ever served, newest first, and whether it is the one in the tree."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.fingerprints import SqlFingerprints

    current = _in_tree(name).fingerprint

    async def run() -> None:
        async with opened(database_url()) as database:
            for version in await SqlFingerprints(database).of_task(name):
                seen = version.first_seen.isoformat(timespec="seconds")
                click.echo(f"{version.fingerprint}  {seen}" + ("  tree" if version.fingerprint == current else ""))

    finish(run())


@task.command()
@click.argument("name")
@click.argument("old")
@click.argument("new", default=_TREE)
def diff(name: str, old: str, new: str) -> None:
    """What changed in the task NAME between two fingerprints; `tree`, the default of NEW, is what the files say now."""
    from gateway.core.versions import difference

    async def run() -> None:
        before, after = await _config(name, old), await _config(name, new)
        click.echo(difference(before, after, f"{name} {old}", f"{name} {new}") or "nothing differs")

    finish(run())


async def _config(name: str, fingerprint: str) -> dict[str, Any]:
    """What a version was made of. Raises NotFound, and InvalidConfig for a tree with problems."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.fingerprints import SqlFingerprints
    from gateway.core.errors import NotFound

    if fingerprint == _TREE:
        return dict(_in_tree(name).config)
    async with opened(database_url()) as database:
        version = await SqlFingerprints(database).find(name, fingerprint)
    if version is None:
        raise NotFound(
            f"`{name}` was never served as `{fingerprint}`; `gateway task history {name}` lists its versions."
        )
    return version.config


def _in_tree(name: str) -> "LoadedTask":
    from gateway.app import load_registry
    from gateway.core.errors import UnknownTask

    try:
        return load_registry(process_settings.read(os.environ)).task(name)
    except UnknownTask as error:
        raise click.ClickException(error.detail) from error
