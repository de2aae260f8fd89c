"""Real servers and models that several test files share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from shutil import copy
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from gateway.local.child import free_port
from gateway.local.valkey import start_valkey

if TYPE_CHECKING:
    from fault_server import FaultServer
    from playwright.async_api import Browser

pytest_plugins = ["model_doors"]

MIGRATIONS = Path(__file__).parent.parent / "migrations"

# No property has a deadline: how long an example takes says more of the machine than of the property.
settings.register_profile("taskgate", deadline=None)
settings.load_profile("taskgate")


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """URL of a real Valkey without persistence. Tests keep apart by a key prefix of their own, or by FLUSHDB."""
    with start_valkey() as url:
        yield url


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokeniser; `adapter/` inside it is a random LoRA adapter."""
    from tiny_llm import tiny_adapter, tiny_model

    folder = tiny_model(tmp_path_factory.mktemp("tiny-llm") / "tiny")
    tiny_adapter(folder, folder / "adapter")
    return folder


@pytest.fixture
def home(tmp_path: Path, tiny_llm_folder: Path) -> Path:
    """A GATEWAY_HOME with the task `manners` and the tiny model."""
    from stack import make_home

    return make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json")


@pytest.fixture(scope="session")
async def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database that was migrated once: copies of it are made faster than migrations run."""
    from gateway.adapters.sql.migrate import upgrade

    path = tmp_path_factory.mktemp("migrated") / "gateway.db"
    await upgrade(f"sqlite:///{path}", MIGRATIONS)
    return path


@pytest.fixture
def database(tmp_path: Path, migrated_file: Path) -> str:
    """URL of a fresh SQLite database with the whole schema."""
    return f"sqlite:///{copy(migrated_file, tmp_path / 'gateway.db')}"


@pytest.fixture
async def chromium() -> AsyncIterator["Browser"]:
    """Headless, Debian's or whatever CHROMIUM names."""
    from browsers import CHROMIUM
    from playwright.async_api import async_playwright

    if CHROMIUM is None:
        pytest.skip("no browser: install chromium, or name one in CHROMIUM")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def model(tiny_llm_folder: Path) -> "FaultServer":
    """A model server that misbehaves on demand; `serving` puts it on a port."""
    from fault_server import FaultServer
    from tokenizers import Tokenizer

    return FaultServer(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json")))


@pytest.fixture(scope="session")
def llm_server(tiny_llm_folder: Path) -> Iterator[str]:
    """Base URL of the real local LLM server on the tiny model, with one adapter called `tiny`."""
    from gateway.local.llm import Options, load, running

    # One thread: on a busy machine torch's threads wait for each other far longer than a tiny model computes.
    options = Options(dtype="float32", threads=1, max_top_n_tokens=10)
    app = load(tiny_llm_folder, {"tiny": tiny_llm_folder / "adapter"}, options)
    with running(app, "127.0.0.1", free_port()) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a real Postgres server, for tests that want a database of their own."""
    from postgres import running_postgres

    with running_postgres() as url:
        yield url


@pytest.fixture
async def postgres_url(postgres_server: str) -> AsyncIterator[str]:
    """URL of an empty Postgres database that only this test uses."""
    from postgres import fresh_database

    async with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path, migrated_file: Path) -> AsyncIterator[str]:
    """URL of a migrated database that only this test uses, on either kind."""
    from postgres import fresh_database, migrated_template

    from gateway.adapters.sql.migrate import upgrade

    if request.param == "sqlite":
        yield f"sqlite:///{copy(migrated_file, tmp_path / 'gateway.db')}"
        return
    server = request.getfixturevalue("postgres_server")
    template = await migrated_template(server, lambda url: upgrade(url, MIGRATIONS))
    async with fresh_database(server, template) as url:
        yield url
