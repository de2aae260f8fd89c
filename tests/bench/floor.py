"""The floor: a bare Litestar handler on the same server, which parses a body and answers as many bytes as a task does.

Nothing that a gateway is for: no key, no quota, no stage, no ledger.
"""

import os
from typing import Any

import msgspec
from granian import Granian
from granian.constants import Interfaces, Loops
from litestar import Litestar, Request, get, post
from msgspec import Struct


class Body(Struct):
    """What a task is asked."""

    input: dict[str, Any]


_decode = msgspec.json.Decoder(Body).decode
_ANSWER = {"output": {"label": "clean", "policies": [], "severity": 0}, "metadata": {"filler": "x" * 700}}


@post("/tasks/{task:str}/invoke", status_code=200)
async def invoke(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Parse, and answer."""
    _decode(await request.body())
    return _ANSWER


@get("/health/ready")
async def ready() -> str:
    """Always."""
    return "ok"


def create() -> Litestar:
    """The application."""
    return Litestar([invoke, ready], openapi_config=None, logging_config=None)


def main() -> None:
    """Serve it as `gateway serve` is served."""
    port = int(os.environ["FLOOR_PORT"])
    Granian(
        "bench.floor:create", address="127.0.0.1", port=port, interface=Interfaces.ASGI, loop=Loops.uvloop,
        factory=True, websockets=False, log_access=False, backpressure=4096,
    ).serve()  # fmt: skip


if __name__ == "__main__":
    main()
