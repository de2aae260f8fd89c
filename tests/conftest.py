"""Real servers and models that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local.child import free_port
from gateway.local.valkey import start_valkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """URL of a real Valkey without persistence. Tests keep apart by a key prefix of their own, or by FLUSHDB."""
    with start_valkey() as url:
        yield url


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokeniser; `adapter/` inside it is a random LoRA adapter."""
    from tiny_llm import tiny_adapter, tiny_model

    folder = tiny_model(tmp_path_factory.mktemp("tiny-llm") / "tiny-llama")
    tiny_adapter(folder, folder / "adapter")
    return folder


@pytest.fixture(scope="session")
def llm_server(tiny_llm_folder: Path) -> Iterator[str]:
    """Base URL of the real local LLM server on the tiny model, with one adapter called `tiny`."""
    from gateway.local.llm import Options, load, running

    # One thread: on a busy machine torch's threads wait for each other far longer than a tiny model computes.
    options = Options(dtype="float32", threads=1, max_top_n_tokens=10)
    app = load(tiny_llm_folder, {"tiny": tiny_llm_folder / "adapter"}, options)
    with running(app, "127.0.0.1", free_port()) as url:
        yield url
