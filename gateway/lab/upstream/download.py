"""Published files over https, each within a size and a time."""

import time
from typing import Protocol

import httpx

from gateway.lab.rows import LabError

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
FILE_SECONDS = 300.0
FILE_BYTES = 64 * 2**20


class Fetch(Protocol):
    """The bytes behind a URL. Raises LabError where there are none, too many, or none in time."""

    def __call__(self, url: str) -> bytes: ...


class Downloads:
    """A `Fetch` over one HTTP client; a context manager.

    `file_bytes` bounds what is read of a file, `file_seconds` how long that may take; proxies are those of the
    environment. A redirect is an error: it would lead away from the host that was named.
    """

    def __init__(self, *, file_bytes: int = FILE_BYTES, file_seconds: float = FILE_SECONDS) -> None:
        self._file_bytes, self._file_seconds = file_bytes, file_seconds
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(timeout=timeout, follow_redirects=False)

    def __enter__(self) -> "Downloads":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __call__(self, url: str) -> bytes:
        try:
            with self._client.stream("GET", url) as response:
                response.raise_for_status()
                return self._body(url, response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LabError(f"{url}: {error or type(error).__name__}") from error

    def _body(self, url: str, response: httpx.Response) -> bytes:
        until = time.monotonic() + self._file_seconds
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._file_bytes:
                raise LabError(f"{url}: more than {self._file_bytes} bytes")
            if time.monotonic() > until:
                raise LabError(f"{url}: not read within {self._file_seconds:g} seconds")
        return bytes(body)
