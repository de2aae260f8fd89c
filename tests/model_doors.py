"""Fixtures for tests of the model doors: stages over a server that answers, and fails, as its test says."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fault_server import FaultServer, serving
from tokenizers import Tokenizer

from gateway.adapters.chain_builder import ChainBuilder


@pytest.fixture(params=["tgi", "openai"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of door."""
    return str(request.param)


@pytest.fixture
async def builder() -> AsyncIterator[ChainBuilder]:
    """What builds chain stages."""
    builder = ChainBuilder()
    yield builder
    await builder.aclose()


@pytest.fixture
def server(tiny_llm_folder: Path) -> FaultServer:
    """A model server that is told what to say."""
    return FaultServer(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json")))


@pytest.fixture
async def url(server: FaultServer) -> AsyncIterator[str]:
    """Where `server` listens."""
    async with serving(server) as url:
        yield url
