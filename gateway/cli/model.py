"""gateway model."""

import os
from pathlib import Path

import click
from rich.console import Console

from gateway import settings as process_settings


@click.group()
def model() -> None:
    """The local LLM: fetch it, serve it."""


@model.command()
def fetch() -> None:
    """Fetch the small LLM into the cache folder, verified by its sha256."""
    from gateway.local.fetch import fetch_model

    click.echo(fetch_model(process_settings.read(os.environ).cache_path, Console(stderr=True)))


@model.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8081, show_default=True)
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=FOLDER", help="A LoRA adapter; repeatable.")
@click.option("--max-concurrent-requests", type=int, default=128, show_default=True)
@click.option("--max-top-n-tokens", type=int, default=10, show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--threads", type=int, help="Threads of the model; what the machine has, if not given.")
@click.option("--unknown-adapter", type=click.Choice(["base", "reject"]), default="base", show_default=True)
def serve(
    folder: Path | None,
    host: str,
    port: int,
    adapters: tuple[str, ...],
    max_concurrent_requests: int,
    max_top_n_tokens: int,
    dtype: str,
    threads: int | None,
    unknown_adapter: str,
) -> None:
    """Serve FOLDER (default: the fetched model) over TGI's wire API.

    Like TGI, it answers a request for an adapter that it does not have with the base model, unless told to reject it.
    """
    from gateway.local.fetch import fetch_model
    from gateway.local.llm import serve as run

    folder = folder or fetch_model(process_settings.read(os.environ).cache_path, Console(stderr=True))
    run(
        folder,
        adapters=dict(_named_folder(text) for text in adapters),
        host=host,
        port=port,
        max_concurrent_requests=max_concurrent_requests,
        max_top_n_tokens=max_top_n_tokens,
        dtype=dtype,
        threads=threads,
        unknown_adapter=unknown_adapter,
    )


def _named_folder(text: str) -> tuple[str, Path]:
    name, found, folder = text.partition("=")
    if not (name and found and Path(folder).is_dir()):
        raise click.BadParameter(f"{text!r} is not NAME=FOLDER with an existing folder", param_hint="--adapter")
    return name, Path(folder)
