"""What stands against an attacker, over real sockets. The threat table in the README names these tests."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_server import FaultServer, serving
from msgspec import Struct
from stack import MIGRATIONS, ROOT, Gateway, gateway, make_home
from tokenizers import Tokenizer

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade
from gateway.web.auth import REMEMBER_S

INVOKE = "/tasks/manners/invoke"
BODY_S = 1.0
"""What a client has for its head, and for its body."""
PATIENCE_S = 60.0
"""More than anything takes that ends at all."""


class Pair(Struct, frozen=True):
    """Two replicas on the same stores, and a key of each kind."""

    one: Gateway
    two: Gateway
    key: str
    admin: str


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path, valkey: str) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("security")
    home = make_home(folder / "home", tiny_llm_folder / "tokenizer.json")
    database = f"sqlite:///{folder / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "shop", frozenset({"invoke"}))
    admin = await new_key(database, "platform", frozenset({"admin"}))
    model = FaultServer(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json")))
    async with serving(model) as llm:
        settings = {"body_timeout_s": str(BODY_S)}
        with gateway(home, database, valkey, llm, **settings) as one, gateway(home, database, valkey, llm) as two:
            yield Pair(one, two, key, admin)


async def said(up: Gateway, head: bytes, then: bytes = b"") -> bytes:
    """What comes back for raw bytes, until the server closes or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(up.url.rsplit(":", 1)[1]))
    try:
        writer.write(head + then)
        await writer.drain()
        return await asyncio.wait_for(reader.read(4096), PATIENCE_S)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_too_many_or_too_long_headers_are_refused(pair: Pair) -> None:
    """A thousand headers, or one of a megabyte, never reach the application: 431, or the connection closes."""
    start = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
    assert (await said(pair.one, start + b"\r\n")).startswith(b"HTTP/1.1 200")
    many = b"".join(b"x-%d: y\r\n" % i for i in range(1000))
    for head in (start + many + b"\r\n", start + b"x: " + b"y" * 1_000_000 + b"\r\n\r\n"):
        assert not (await said(pair.one, head)).startswith(b"HTTP/1.1 2")


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_client_that_sends_a_byte_at_a_time_is_cut_off(pair: Pair, part: str) -> None:
    """Head and body each have their time; whoever drips beyond it is answered 408 or closed, long before it has sent
    all that it has, and others are served.
    """
    head = (
        f"POST {INVOKE} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {pair.key}\r\ncontent-length: 1000\r\n\r\n"
    ).encode()
    sent, drip = (b"", b"POST / HTTP/1.1\r\nx: " + b"y" * 1000) if part == "head" else (head, b" " * 1000)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(pair.one.url.rsplit(":", 1)[1]))
    writer.write(sent)

    async def dripping() -> None:
        for byte in drip:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(BODY_S / 10)

    feeding = asyncio.create_task(dripping())
    async with pair.one.client(pair.key) as client:
        assert (await client.get("/health/live")).status_code == 200
    answer = await asyncio.wait_for(_until_closed(reader), PATIENCE_S)
    assert not answer.startswith(b"HTTP/1.1 2")
    feeding.cancel()
    writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_no_url_of_a_caller_is_ever_asked(pair: Pair) -> None:
    """Whatever field an address stands in: nobody connects to it. Endpoints come from models.toml only."""
    called = asyncio.Event()

    async def trap(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        writer.close()

    listener = await asyncio.start_server(trap, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    ask: dict[str, Any] = {"input": {"message": f"See {url}"}}
    tries = [
        ask | {"config": {"configurable": {"base_url": url, "model": url}, "metadata": {"callback_url": url}}},
        ask | {"kwargs": {"base_url": url}},
        ask | {"base_url": url},
    ]
    chat = {"model": url, "base_url": url, "messages": [{"role": "user", "content": url}]}
    async with pair.one.client(pair.key) as client:
        headers = {"x-forwarded-host": url, "x-base-url": url, "referer": url}
        statuses = [(await client.post(INVOKE, json=each, headers=headers)).status_code for each in tries]
        statuses.append((await client.post("/v1/chat/completions", json=chat)).status_code)
    assert statuses[0] == 200
    assert all(status in (404, 422) for status in statuses[1:])
    assert not called.is_set()
    listener.close()


async def test_keys_are_in_no_log_and_no_answer(pair: Pair) -> None:
    """Good, revoked and mistyped keys, in every place that a client may put them: none is written anywhere."""
    secret = pair.key.rsplit("_", 1)[1]
    wrong = pair.key[:-4] + "0000"
    heard = []
    async with httpx.AsyncClient(base_url=pair.one.url) as client:
        for key in (pair.key, wrong, f"{pair.key}x"):
            bearer = {"authorization": f"Bearer {key}"}
            heard.append(await client.post(INVOKE, json={"input": {"message": "Thank you"}}, headers=bearer))
            heard.append(await client.post(INVOKE, content=b"{", headers=bearer))
            # An unknown name in the path is quoted to whoever asked, so this answer is not looked at.
            await client.get(f"/tasks/{key}", headers={"x-api-key": pair.key})
            heard.append(await client.get("/tasks", params={"key": key}, headers=bearer))
    assert {response.status_code for response in heard} >= {200, 401, 422}
    parts = (secret, wrong.rsplit("_", 1)[1])
    written = pair.one.child.log.read_text("utf-8") + "".join(r.text + str(r.headers) for r in heard)
    assert not any(part in written for part in parts)


async def test_a_revoked_key_is_refused_by_every_replica_within_two_seconds(pair: Pair) -> None:
    """Where it was revoked at once; elsewhere though it is in constant use, as nothing is remembered for longer."""
    assert REMEMBER_S <= 2.0
    async with pair.one.client(pair.admin) as admin:
        made = (await admin.post("/keys", json={"team": "shop", "scopes": ["invoke"]})).json()
        async with pair.one.client(made["key"]) as here, pair.two.client(made["key"]) as there:
            ask = {"json": {"input": {"message": "Thank you"}}}
            assert (await there.post(INVOKE, **ask)).status_code == 200
            await admin.delete(f"/keys/{made['info']['id']}")
            assert (await here.post(INVOKE, **ask)).status_code == 401
            async with asyncio.timeout(PATIENCE_S):
                while (await there.post(INVOKE, **ask)).status_code != 401:
                    pass
        audit = (await admin.get("/audit")).text
    assert "key_revoked" in audit
    assert made["key"] not in audit


async def test_guessing_keys_is_slowed_down_and_good_keys_are_not(pair: Pair) -> None:
    """After twenty bad keys from an address the next ones are 429; a good key from there still works."""
    async with httpx.AsyncClient(base_url=pair.two.url) as client:
        # At once, since a second makes good for one of them.
        asked = (client.get("/tasks", headers={"authorization": f"Bearer gk_{i:016x}_{'x' * 43}"}) for i in range(80))
        bad = Counter(response.status_code for response in await asyncio.gather(*asked))
        good = await client.post(
            INVOKE, json={"input": {"message": "Thank you"}}, headers={"authorization": f"Bearer {pair.key}"}
        )
    assert bad.keys() == {401, 429}
    assert good.status_code == 200


def test_every_row_of_the_threat_table_names_a_test_that_exists() -> None:
    """README, section Threats: each row ends with `file::test`, and that test is in that file."""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.split("## Threats", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 12
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        for file, test in named:
            assert re.search(rf"def {test}\(", (ROOT / file).read_text("utf-8")), f"{file}::{test}"
