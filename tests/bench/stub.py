"""A model server that answers at once, or after `--delay-ms`: TGI's API and OpenAI's chat, and a collector of spans.

The answer is always the same: the first label, with next to all of the probability. It costs a few tens of
microseconds, so that what is measured is the gateway before it.
"""

import argparse
import asyncio
import json
from typing import Any, cast

import uvloop

MODEL_ID = "SmolLM2-135M-Instruct"
_PROMPT_TOKENS = 400


class Answers:
    """Bodies by path. `labels` are (token, id) of the two labels."""

    def __init__(self, labels: list[tuple[str, int]]) -> None:
        (clean, clean_id), (other, other_id) = labels
        top = [
            {"id": clean_id, "text": clean, "logprob": -0.001, "special": False},
            {"id": other_id, "text": other, "logprob": -7.5, "special": False},
        ]
        details = {
            "finish_reason": "length", "generated_tokens": 1, "seed": None, "prefill": [], "tokens": top[:1],
            "top_tokens": [top],
        }  # fmt: skip
        message = {"role": "assistant", "content": clean}
        usage = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": _PROMPT_TOKENS + 1}
        chat = {
            "id": "chat-1", "object": "chat.completion", "created": 1, "model": MODEL_ID, "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip
        self._generated = _answer([{"generated_text": clean, "details": details}], x_prompt_tokens=_PROMPT_TOKENS)
        self._chat = _answer(chat)
        self._info = _answer({"model_id": MODEL_ID, "model_sha": None, "version": "3.3.7"})
        self._empty = _answer({})

    def to(self, path: bytes) -> tuple[bytes, bool]:
        """The answer for a path, and whether it takes a model's time."""
        if path in (b"/", b"/generate"):
            return self._generated, True
        if path == b"/v1/chat/completions":
            return self._chat, True
        return (self._info, False) if path == b"/info" else (self._empty, False)


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request after the other."""

    def __init__(self, answers: Answers, delay_s: float) -> None:
        self._answers, self._delay_s = answers, delay_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = _length(head)
        if len(body) < length:
            return
        self._received = body[length:]
        answer, takes_time = self._answers.to(head.split(b" ", 2)[1])
        if takes_time and self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def _answer(body: Any, **headers: object) -> bytes:
    data = json.dumps(body).encode()
    lines = ["HTTP/1.1 200 OK", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


async def serve(port: int, delay_s: float, answers: Answers) -> None:
    """Until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers, delay_s), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(prog="bench.stub")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--labels", type=json.loads, required=True, help='[["A", 1], ["B", 2]]')
    asked = parser.parse_args()
    uvloop.run(serve(asked.port, asked.delay_ms / 1000, Answers(asked.labels)))


if __name__ == "__main__":
    main()
