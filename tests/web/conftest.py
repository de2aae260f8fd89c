"""The gateways that the tests of the web layer talk to."""

from collections.abc import AsyncIterator

import pytest
from served import Serve, Served, serving


@pytest.fixture
def serve() -> Serve:
    """For tests that need a gateway of their own: `async with serve(settings) as served`."""
    return serving


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    """One gateway for the tests of a file."""
    async with serving() as running:
        yield running
