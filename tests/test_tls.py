"""TLS to all three: the quota store, the database and the model server, with an authority of one's own."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fault_server import FaultServer, serving
from stack import MIGRATIONS, gateway, make_home
from tls import Authority, before, make_authority
from tokenizers import Tokenizer

from gateway.adapters.redis import RedisSettings, RedisStore
from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import upgrade
from gateway.core.errors import Unavailable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "strange")


@pytest.fixture
async def postgres_tls(postgres_url: str, authority: Authority) -> AsyncIterator[str]:
    """URL of the database behind TLS, without the authority."""
    parts = urlsplit(postgres_url)
    socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
    with before(socket, authority, postgres=True) as port:
        yield f"postgresql://postgres@127.0.0.1:{port}{parts.path}?sslmode=verify-full"


async def test_a_gateway_speaks_tls_to_all_three(
    tmp_path: Path, tiny_llm_folder: Path, valkey: str, postgres_url: str, postgres_tls: str, authority: Authority
) -> None:
    """rediss:// with its authority, sslmode=verify-full, https:// with SSL_CERT_FILE: the LLM decides, ready is ok."""
    await upgrade(postgres_url, MIGRATIONS)
    key = await new_key(postgres_url, "shop", frozenset({"invoke"}))
    model = FaultServer(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json")))
    home = make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json")
    async with serving(model) as llm:
        with (
            before(("127.0.0.1", int(llm.rsplit(":", 1)[1])), authority) as llm_port,
            before(valkey.removeprefix("unix://"), authority) as redis_port,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("SSL_CERT_FILE", str(authority.ca))
            running = gateway(
                home,
                f"{postgres_tls}&sslrootcert={authority.ca}",
                f"rediss://127.0.0.1:{redis_port}/0?ssl_ca_certs={authority.ca}",
                f"https://127.0.0.1:{llm_port}",
            )
            with running as up:
                async with up.client(key) as client:
                    answer = await client.post("/tasks/manners/invoke", json={"input": {"message": "Over TLS"}})
                    parts = (await client.get("/health/ready")).json()["parts"]
    assert answer.json()["metadata"]["stage"] == "llm"
    assert (parts["store"]["status"], parts["database"]["status"]) == ("ok", "ok")


async def test_a_store_with_a_strange_certificate_is_not_spoken_to(
    valkey: str, authority: Authority, stranger: Authority
) -> None:
    """Another authority's certificate counts as a store that is away."""
    with before(valkey.removeprefix("unix://"), authority) as port:
        store = RedisStore(RedisSettings(url=f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={stranger.ca}"))
        with pytest.raises(Unavailable):
            await store.ping()
        await store.close()


async def test_a_database_with_a_strange_certificate_is_not_spoken_to(postgres_tls: str, stranger: Authority) -> None:
    """sslmode=verify-full means it."""
    database = Database(f"{postgres_tls}&sslrootcert={stranger.ca}")
    with pytest.raises(Unavailable):
        await database.ping()
    await database.aclose()
