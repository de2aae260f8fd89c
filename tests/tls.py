"""A certificate authority made on the spot, and a proxy that puts TLS before a server that has none."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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


@asynccontextmanager
async def before(server: str | tuple[str, int], authority: Authority, *, postgres: bool = False) -> AsyncIterator[int]:
    """A TLS port on loopback before a Unix socket's path or a (host, port)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            if postgres:
                if await reader.readexactly(8) != _PG_ASKS:
                    return
                writer.write(b"S")
                await writer.start_tls(context)
            opened = (
                asyncio.open_unix_connection(server) if isinstance(server, str) else asyncio.open_connection(*server)
            )
            behind, ahead = await opened
            await asyncio.wait(
                [asyncio.create_task(_copy(reader, ahead)), asyncio.create_task(_copy(behind, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
            ahead.close()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if postgres else context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
