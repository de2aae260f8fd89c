"""gateway serve, dev, demo."""

import os
import sys

import click
from msgspec import structs
from rich.console import Console

from gateway import settings as process_settings


@click.command()
@click.option("--host", help="Address to listen on. [env: GATEWAY_HOST]")
@click.option("--port", type=int, help="Port to listen on. [env: GATEWAY_PORT]")
@click.option("--workers", type=int, help="Worker processes. [env: GATEWAY_WORKERS]")
def serve(host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the HTTP API until SIGTERM, then drain."""
    from gateway.app import serve as run

    given = {"host": host, "port": port, "workers": workers}
    for name, value in given.items():
        if value is not None:
            # Workers are processes of their own and read the environment for themselves.
            os.environ[f"GATEWAY_{name.upper()}"] = str(value)
    run(process_settings.read(os.environ))


@click.command()
@click.option("--port", type=int, default=8080, show_default=True, help="Port of the gateway; 0 picks a free one.")
def dev(port: int) -> None:
    """Start Valkey, SQLite, the local LLM server and the gateway, and stay up until Ctrl-C."""
    from gateway.local.dev import running

    console = Console(stderr=True)
    with running(process_settings.read(os.environ), console, port) as up:
        console.print(f"gateway: {up.url}    LLM server: {up.llm_url}")
        console.print("make a key with: gateway keys create --team NAME --scope invoke")
        try:
            up.gateway.process.wait()
        except KeyboardInterrupt:
            console.print("stopping")


@click.command()
@click.option("--exit", "leave", is_flag=True, help="End after the table; status 0 only if every action was expected.")
def demo(leave: bool) -> None:
    """Send the demo messages through the whole path and show a table."""
    from gateway.local.demo import demo as run

    settings = structs.replace(process_settings.read(os.environ), state_dir=".demo")
    if not run(settings, Console(), stay=not leave) and leave:
        sys.exit(1)
