"""What several tests of core stand on."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from gateway.adapters.redis import RedisSettings, RedisStore


@pytest.fixture(scope="module")
async def stores(valkey: str) -> AsyncIterator[list[RedisStore]]:
    """Two processes' ways to one store."""
    alike = RedisSettings(url=valkey, prefix=f"{uuid4().hex}:")
    both = [RedisStore(alike), RedisStore(alike)]
    yield both
    for store in both:
        await store.close()
