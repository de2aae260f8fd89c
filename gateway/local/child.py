"""Child processes of the embedded default: started with a log file, awaited until ready, stopped with the parent."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gateway.core.problems import Unusable

_FIRST_PORT, _PORTS = 20_000, 12_000
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05


class ChildFailed(Unusable):
    """A child ended, or did not become ready in time. The text carries the end of its log."""


class Child:
    """One child process. `log` receives everything that it prints."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                # Ctrl-C in the terminal reaches the parent alone, which then stops the children in order.
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )

    def wait_ready(self, url: str, timeout_s: float = 120.0) -> None:
        """Return when `url` answers 200. Raises ChildFailed."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ChildFailed(f"{self.name} ended with status {self.process.returncode}\n{self.tail()}")
            if _answers(url):
                return
            time.sleep(_POLL_S)
        raise ChildFailed(f"{self.name} was not ready after {timeout_s:.0f} s\n{self.tail()}")

    def stop(self, timeout_s: float = 15.0) -> None:
        """SIGTERM, then SIGKILL for what does not end."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


def die_with_parent() -> None:
    """Runs in a new child on Linux: have the kernel end it when the parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago.

    One that systems give to no outgoing connection, so that it stays free until somebody binds it on purpose.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
