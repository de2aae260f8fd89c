"""Real servers and models that several test files share."""

from collections.abc import Iterator

import pytest

from gateway.local.valkey import start_valkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """URL of a real Valkey without persistence. Tests keep apart by a key prefix of their own, or by FLUSHDB."""
    with start_valkey() as url:
        yield url
