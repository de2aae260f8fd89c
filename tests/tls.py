"""A certificate authority made on the spot, and a proxy that puts TLS before a server that has none."""

import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

# A Postgres client asks in clear whether it may speak TLS, and is told with one byte.
_PG_ASKS = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")


class Authority(Struct, frozen=True):
    """Files in PEM: the authority's certificate, and a certificate for 127.0.0.1 and localhost with its key."""

    ca: Path
    certificate: Path
    key: Path


def make_authority(folder: Path) -> Authority:
    """By the `openssl` command."""
    folder.mkdir(parents=True)
    ca, ca_key, made, key, asked, names = (
        folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key", "server.csr", "names")
    )
    names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n", "utf-8")
    key_kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl("req", "-x509", *key_kind, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=test authority")
    _openssl("req", *key_kind, "-keyout", key, "-out", asked, "-subj", "/CN=localhost")
    signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", names)
    _openssl("x509", "-req", "-in", asked, "-out", made, *signed)
    return Authority(ca, made, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@contextmanager
def before(server: str | tuple[str, int], authority: Authority, *, postgres: bool = False) -> Iterator[int]:
    """A TLS port on loopback before a Unix socket's path or a (host, port). In threads: tests block their loop."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(plain: socket.socket) -> None:
        with suppress(OSError), plain:
            if postgres:
                if plain.recv(8, socket.MSG_WAITALL) != _PG_ASKS:
                    return
                plain.sendall(b"S")
            with context.wrap_socket(plain, server_side=True) as client, _connected(server) as behind:
                _carry(client, behind)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _connected(server: str | tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_UNIX if isinstance(server, str) else socket.AF_INET)
    made.connect(server)
    return made


def _carry(client: ssl.SSLSocket, behind: socket.socket) -> None:
    """Both ways, until either end closes."""
    while True:
        ready = [client] if client.pending() else select.select([client, behind], [], [])[0]
        for source, sink in ((client, behind), (behind, client)):
            if source in ready:
                if not (data := source.recv(65_536)):
                    return
                sink.sendall(data)
