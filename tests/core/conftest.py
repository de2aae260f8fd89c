"""What several tests of core stand on."""

from collections.abc import AsyncIterator

import pytest
from corner import corner

from gateway.adapters.redis import RedisStore


@pytest.fixture(scope="module")
async def stores(valkey: str) -> AsyncIterator[list[RedisStore]]:
    """Two processes' ways to one store."""
    alike = corner(valkey)
    both = [RedisStore(alike), RedisStore(alike)]
    yield both
    for store in both:
        await store.close()
