"""The second witness: a proxy between the gateways and the model server, which counts what it sees pass.

It reads each answer of the server to its end, whatever became of the gateway that asked, so its counts must be those of
the server's own `/metrics`. On demand it misbehaves, as a network does.
"""

from asyncio import Event, StreamWriter
from collections.abc import Mapping
from typing import Any

import httpx
from fault_server import GENERATIONS, Behaviour, FaultServer, Seen, hang, hang_up, write_answer
from msgspec import Struct
from msgspec.structs import astuple
from tokenizers import Tokenizer

_COUNTERS = {
    "requests": "tgi_request_count",
    "input_tokens": "tgi_request_input_length_sum",
    "output_tokens": "tgi_request_generated_tokens_sum",
}
_TOKENS = ("x-prompt-tokens", "x-generated-tokens")


class Count(Struct, frozen=True):
    """Requests whose prompt the model has read, and the tokens of prompts and answers."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Witness(FaultServer):
    """`counted` is what passed."""

    def __init__(self, tokenizer: Tokenizer, server: str) -> None:
        super().__init__(tokenizer)
        self.usual = forward
        self.counted = Count()
        self._under_way, self._idle, self._more = 0, Event(), Event()
        self._idle.set()
        self._server = httpx.AsyncClient(base_url=server, timeout=60, limits=httpx.Limits(max_connections=64))

    async def aclose(self) -> None:
        """Hang up on the model server."""
        await self._server.aclose()

    async def more(self, calls: int) -> None:
        """Returns when so many more have passed."""
        enough = self.counted.requests + calls
        while self.counted.requests < enough:
            self._more.clear()
            await self._more.wait()

    async def at_the_server(self) -> Count:
        """What the server itself has counted since it began, once nothing is under way."""
        await self._idle.wait()
        lines = (await self._server.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return Count(**{name: int(float(values[counter])) for name, counter in _COUNTERS.items()})

    async def ask(self, seen: Seen) -> httpx.Response:
        """The server's whole answer, counted."""
        self._under_way += 1
        self._idle.clear()
        try:
            answer = await self._server.request("POST" if seen.body is not None else "GET", seen.path, json=seen.body)
            if seen.path in GENERATIONS:
                self.counted += _counts(answer.headers)
                self._more.set()
            return answer
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()


async def forward(witness: Any, seen: Seen, writer: StreamWriter) -> None:
    """Ask the server, and pass its answer on."""
    answer = await witness.ask(seen)
    said = {name: answer.headers[name] for name in _TOKENS if name in answer.headers}
    write_answer(writer, answer.status_code, answer.content, said)


async def swallow(witness: Any, seen: Seen, writer: StreamWriter) -> None:
    """Ask the server, and lose its answer: it was counted there, and nobody hears of it."""
    await witness.ask(seen)
    writer.close()


FAULTS: tuple[Behaviour, ...] = (hang, hang_up, swallow)


def _counts(headers: Mapping[str, str]) -> Count:
    """What an answer says of itself; one without the headers is a refusal, which the server does not count."""
    return Count(1, *(int(headers[name]) for name in _TOKENS)) if _TOKENS[0] in headers else Count()
