"""The life of a key over HTTP, on two gateway processes over one database."""

import asyncio
from pathlib import Path

import httpx
from fault_server import FaultServer, serving
from stack import MIGRATIONS, Gateway, gateway, make_home
from tokenizers import Tokenizer

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade


async def refused(up: Gateway, key: str) -> None:
    """Ask until the gateway refuses the key."""
    async with asyncio.timeout(60), up.client(key) as client:
        while (await client.get("/tasks")).status_code == 200:
            pass


async def created(client: httpx.AsyncClient, path: str, body: dict[str, object]) -> tuple[str, str]:
    """A new key: its text and its id."""
    response = await client.post(path, json=body)
    assert response.status_code == 201
    return response.json()["key"], response.json()["info"]["id"]


async def test_a_key_from_its_making_to_its_end_on_two_replicas(
    tmp_path: Path, tiny_llm_folder: Path, valkey: str
) -> None:
    """Made on one, good on both; once revoked, refused on both; and every act is logged."""
    tokenizer = tiny_llm_folder / "tokenizer.json"
    home, database = make_home(tmp_path / "home", tokenizer), f"sqlite:///{tmp_path / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    admin = await new_key(database, "shop", frozenset({"admin"}))
    async with serving(FaultServer(Tokenizer.from_file(str(tokenizer)))) as llm:
        with gateway(home, database, valkey, llm) as one, gateway(home, database, valkey, llm) as two:
            async with one.client(admin) as client:
                old, old_id = await created(client, "/keys", {"team": "shop", "scopes": ["read"]})
                new, new_id = await created(client, f"/keys/{old_id}/rotate", {"overlap_s": 3600})
                for up in (one, two):
                    for key in (old, new):
                        async with up.client(key) as holder:
                            assert (await holder.get("/tasks")).status_code == 200
                assert (await client.delete(f"/keys/{old_id}")).status_code == 200
                await asyncio.gather(refused(one, old), refused(two, old))
                short, _ = await created(client, f"/keys/{new_id}/rotate", {"overlap_s": 0})
                await asyncio.gather(refused(one, new), refused(two, new))
                listed = (await client.get("/keys")).text
                acts = (await client.get("/audit")).json()["acts"]
                assert [act["act"] for act in acts[:4]] == ["key_rotated", "key_revoked", "key_rotated", "key_created"]
                assert {act["by_key"] for act in acts[:4]} == {admin.split("_")[1]}
                assert all(key.split("_", 2)[2] not in listed + str(acts) for key in (old, new, short, admin))
            async with two.client(short) as reader:
                assert (await reader.get("/audit")).status_code == 403
