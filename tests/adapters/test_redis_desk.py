"""Sessions and exposure counters on a real Valkey."""

from datetime import date, timedelta

import pytest
from corner import corner

from gateway.adapters.redis import RedisSettings
from gateway.adapters.redis.desk import RedisDesk
from gateway.core.errors import Unavailable
from gateway.local.child import free_port

TODAY = date(2026, 3, 1)


async def test_a_session_is_known_to_every_process_until_it_is_closed(valkey: str) -> None:
    """What one opens another finds, and an end is an end for both."""
    settings = corner(valkey)
    one, other = RedisDesk(settings), RedisDesk(settings)
    await one.open("name", "key", timedelta(hours=1))
    assert (await other.key_id("name"), await other.key_id("else")) == ("key", None)
    await other.close("name")
    assert await one.key_id("name") is None
    await one.aclose()
    await other.aclose()


async def test_a_session_ends_by_itself(valkey: str) -> None:
    """The store forgets it: nobody has to sweep."""
    desk = RedisDesk(corner(valkey))
    await desk.open("name", "key", timedelta(seconds=1))
    while await desk.key_id("name") is not None:
        pass
    await desk.aclose()


async def test_exposure_counts_an_item_once_a_day_and_apart_by_severity(valkey: str) -> None:
    """Revealing the same text twice is one exposure; yesterday's and other reviewers' are not today's."""
    desk = RedisDesk(corner(valkey))
    for severity, review_id in ((2, "a"), (2, "a"), (2, "b"), (3, "c")):
        await desk.add("key", TODAY, severity, review_id)
    await desk.add("key", TODAY - timedelta(days=1), 3, "d")
    await desk.add("other", TODAY, 3, "e")
    assert await desk.of("key", TODAY) == {1: 0, 2: 2, 3: 1}
    await desk.aclose()


async def test_a_store_that_is_away_is_said_to_be() -> None:
    """No session is invented."""
    desk = RedisDesk(RedisSettings(url=f"redis://127.0.0.1:{free_port()}"))
    with pytest.raises(Unavailable):
        await desk.key_id("name")
    await desk.aclose()
