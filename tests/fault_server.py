"""A real HTTP server that speaks TGI's wire API and OpenAI chat, and misbehaves on demand.

Each request to a generation route takes the next behaviour of `script`, or the `usual` one (`good`) once that is used
up. Everything that came in stands in `seen`.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tokenizers import Tokenizer

Behaviour = Callable[["FaultServer", "Seen", asyncio.StreamWriter], Any]

GENERATIONS = ("/", "/generate", "/generate_stream", "/v1/chat/completions")


class Seen(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: Any


class FaultServer:
    """`says` are the tokens of a good answer: for each position, token text → log-probability, the chosen one first."""

    def __init__(self, tokenizer: Tokenizer, model_id: str = "tiny") -> None:
        self.tokenizer = tokenizer
        self.model_id, self.revision = model_id, "r1"
        self.says: list[dict[str, float]] = [{"B": -0.1, "A": -2.5, "C": -6.0}]
        self.script: deque[Behaviour] = deque()
        self.usual: Behaviour = good
        self.seen: list[Seen] = []
        self.tokenized = 0
        self.gone = asyncio.Event()
        self.hung = asyncio.Event()

    @property
    def asked(self) -> list[Seen]:
        """The generation requests so far."""
        return [seen for seen in self.seen if seen.path in GENERATIONS]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (seen := await _read(reader)) is not None:
                self.seen.append(seen)
                await self._answer(seen, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.path == "/tokenize":
            self.tokenized += 1
            ids = self.tokenizer.encode(seen.body["inputs"]).ids
            _write(writer, 200, [{"id": id_, "text": "", "start": 0, "stop": 0} for id_ in ids])
        elif seen.path == "/info":
            _write(writer, 200, {"model_id": self.model_id, "model_sha": self.revision, "version": "3.3.7"})
        elif seen.path == "/v1/models":
            _write(writer, 200, {"object": "list", "data": [{"id": self.model_id, "object": "model"}]})
        else:
            behaviour = self.script.popleft() if self.script else self.usual
            if (waiting := behaviour(self, seen, writer)) is not None:
                await waiting

    def id_of(self, text: str) -> int:
        """The id of a one-token text."""
        (id_,) = self.tokenizer.encode(text, add_special_tokens=False).ids
        return id_

    def generated(self) -> list[Any]:
        """TGI's answer to `POST /`."""
        tops = [
            [{"id": self.id_of(t), "text": t, "logprob": lp, "special": False} for t, lp in position.items()]
            for position in self.says
        ]
        details = {
            "finish_reason": "length",
            "generated_tokens": len(tops),
            "seed": None,
            "prefill": [],
            "tokens": [top[0] for top in tops],
            "top_tokens": tops,
        }
        return [{"generated_text": "".join(top[0]["text"] for top in tops), "details": details}]

    def stream(self, seen: "Seen", prompt_tokens: int) -> list[Any]:
        """The events of a streamed answer, in the words of the API that was asked."""
        texts = [next(iter(position)) for position in self.says]
        if seen.path == "/v1/chat/completions":
            chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
            chunks.append({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(texts)}})
            return chunks
        events: list[Any] = [
            {"index": i, "token": {"id": self.id_of(text), "text": text, "logprob": -0.1, "special": False}}
            for i, text in enumerate(texts, 1)
        ]
        details = {"finish_reason": "length", "generated_tokens": len(texts), "input_length": prompt_tokens}
        events[-1] |= {"generated_text": "".join(texts), "details": details}
        return events

    def completion(self, prompt_tokens: int) -> dict[str, Any]:
        """The answer to a chat."""
        content = [
            {
                "token": next(iter(position)),
                "logprob": next(iter(position.values())),
                "top_logprobs": [{"token": t, "logprob": lp} for t, lp in position.items()],
            }
            for position in self.says
        ]
        message = {"role": "assistant", "content": "".join(c["token"] for c in content)}
        choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": content}}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(content)}
        return {"id": "", "object": "chat.completion", "choices": [choice], "usage": usage}


def good(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer as TGI does, with honest counts."""
    if streams(seen):
        for event in server.stream(seen, prompt_tokens(server, seen)):
            write_event(writer, event)
        end_events(seen, writer)
        return
    if seen.path == "/v1/chat/completions":
        text = "\n".join(m["content"] for m in seen.body["messages"])
        _write(writer, 200, server.completion(len(server.tokenizer.encode(text).ids)))
        return
    count = str(len(server.tokenizer.encode(seen.body["inputs"]).ids))
    _write(writer, 200, server.generated(), {"x-prompt-tokens": count})


def saying(text: str) -> Behaviour:
    """Answer well, with this text: one token a character."""

    def behave(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        server.says = [{letter: -0.1} for letter in text]
        good(server, seen, writer)

    return behave


def breaking_off(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Stream the first token, then close."""
    write_event(writer, server.stream(seen, 1)[0])
    writer.close()


def failing_within(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Stream the first token, then an error, as TGI does where the model fails."""
    write_event(writer, server.stream(seen, 1)[0])
    write_event(writer, {"error": "no", "error_type": "generation"})
    end_events(seen, writer)


async def stalling(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Stream the first token, and no other."""
    write_event(writer, server.stream(seen, 1)[0])
    await writer.drain()
    await hang(server, seen, writer)


def streams(seen: Seen) -> bool:
    """Whether a request wants its answer token by token."""
    return seen.path == "/generate_stream" or bool(seen.body.get("stream"))


def prompt_tokens(server: FaultServer, seen: Seen) -> int:
    """An honest count."""
    text = "\n".join(m["content"] for m in seen.body["messages"]) if "messages" in seen.body else seen.body["inputs"]
    return len(server.tokenizer.encode(text).ids)


def write_event(writer: asyncio.StreamWriter, event: Any) -> None:
    """A server-sent event; the first of an answer brings the head with it, and the end of the connection ends it."""
    if not getattr(writer, "begun", False):
        writer.write(b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.begun = True  # type: ignore[attr-defined]
    line = b"data:" + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
    writer.write(b"%x\r\n%b\r\n" % (len(line), line))


def end_events(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """The end of a stream."""
    if seen.path == "/v1/chat/completions":
        write_event(writer, b"[DONE]")
    writer.write(b"0\r\n\r\n")
    writer.begun = False  # type: ignore[attr-defined]


def status(code: int, error_type: str = "", **headers: str) -> Behaviour:
    """Answer with an error as TGI words it; headers are written with _ for -."""
    body = {"error": "no", "error_type": error_type}
    return lambda _, __, writer: _write(writer, code, body, {k.replace("_", "-"): v for k, v in headers.items()})


def rubbish(body: bytes) -> Behaviour:
    """Answer 200 with any bytes."""
    return lambda _, __, writer: write_answer(writer, 200, body, {})


def uncounted(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """A good answer that does not say how long the prompt was."""
    _write(writer, 200, server.generated())


async def hang(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    server.hung.set()
    await server.gone.wait()


def held_until(event: asyncio.Event) -> Behaviour:
    """Answer well, once `event` is set."""

    async def behave(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        server.hung.set()
        await event.wait()
        good(server, seen, writer)

    return behave


def hang_up(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Close before a word of the answer."""
    writer.close()


def half(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Close in the middle of the answer."""
    whole = json.dumps(server.generated()).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(whole) + whole[: len(whole) // 2])
    writer.close()


@asynccontextmanager
async def serving(server: FaultServer, port: int = 0) -> AsyncIterator[str]:
    """Listen on loopback; yields the URL. On leaving, connections are cut as by a killed process."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        await server.serve(reader, writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        server.gone.set()
        for writer in writers:
            writer.close()
        server.gone = asyncio.Event()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    head = await reader.readuntil(b"\r\n\r\n")
    request, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(request.split()[1], headers, json.loads(raw) if raw else None)


def _write(writer: asyncio.StreamWriter, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
    write_answer(writer, code, json.dumps(body).encode(), headers or {})


def write_answer(writer: asyncio.StreamWriter, code: int, body: bytes, headers: dict[str, str]) -> None:
    """A whole answer."""
    lines = [f"HTTP/1.1 {code} x", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
