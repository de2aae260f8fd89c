"""Soft thresholds: four fifths of a quota are told of once per window, whichever replica and however often."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
import pytest_asyncio
from charges import held, rate, settled, window
from corner import corner
from fault_server import FaultServer, Seen, serving, status
from msgspec.structs import replace
from stories import intent, invocation
from structlog.testing import capture_logs
from tokenizers import Tokenizer, models

from gateway.adapters.alerts import Alerts
from gateway.adapters.redis import RedisStore
from gateway.core.errors import BudgetExceeded
from gateway.core.inference import Usage
from gateway.core.quotas import Charge, Limit, Standing, for_model_call
from gateway.core.thresholds import NearLimit, Thresholds, near_limit

Stores = tuple[RedisStore, RedisStore]


@pytest.fixture
def told() -> list[Standing]:
    """What either replica was told."""
    return []


@pytest_asyncio.fixture
async def stores(valkey: str, told: list[Standing]) -> AsyncIterator[Stores]:
    """Two replicas on one server."""
    settings = corner(valkey)
    first, second = (RedisStore(settings, on_near=told.append) for _ in range(2))
    yield first, second
    await first.close()
    await second.close()


def tokens(limit: int, amount: int) -> Charge:
    """A budget of tokens."""
    return window(limit, amount, resource="tokens")


async def test_four_fifths_are_told_of_once_over_all_replicas(stores: Stores, told: list[Standing]) -> None:
    """64 concurrent reservations cross the threshold together: one of them tells, and says how far it is."""
    await asyncio.gather(*(stores[n % 2].reserve(f"r{n}", [tokens(80, 1)]) for n in range(63)))
    assert told == []
    await asyncio.gather(*(stores[n % 2].reserve(f"s{n}", [tokens(80, 1)]) for n in range(17)))
    assert [(standing.used, standing.limit) for standing in told] == [(64, 80)]


async def test_a_budget_that_falls_back_and_comes_again_is_not_told_of_again(
    stores: Stores, told: list[Standing]
) -> None:
    """Estimates are given back all the time; the window was told of, and that is enough."""
    for n in range(5):
        await stores[0].reserve(f"r{n}", [tokens(100, 90)])
        await stores[1].settle([settled(f"r{n}", 1)])
    assert len(told) == 1


async def test_the_door_tells_too(stores: Stores, told: list[Standing]) -> None:
    """Requests per day have a threshold; rates and permits, which refill all the time, have none."""
    for n in range(5):
        await stores[n % 2].admit(f"i{n}", [window(5), rate(5), held(5)], None)
    assert [(standing.charge.resource, standing.used) for standing in told] == [("requests", 4)]


async def test_whoever_is_refused_first_tells(stores: Stores, told: list[Standing]) -> None:
    """A budget whose next call does not fit is told of, though it never stood at four fifths."""
    await stores[0].reserve("r", [tokens(100, 60)])
    for n in range(2):
        with pytest.raises(BudgetExceeded):
            await stores[n].reserve(f"s{n}", [tokens(100, 60), window(10**6, 10**6, key="wide", resource="cost")])
    assert [(standing.charge.key, standing.used) for standing in told] == [("window", 60)]


async def test_a_limit_edited_within_the_window_is_told_of_anew(stores: Stores, told: list[Standing]) -> None:
    """A raised limit is another promise: its own four fifths are told of, once."""
    await stores[0].reserve("a", [tokens(100, 80)])
    await stores[0].reserve("b", [tokens(200, 79)])
    assert [standing.limit for standing in told] == [100]
    for n in range(3):
        await stores[1].reserve(f"c{n}", [tokens(200, 1)])
    assert [standing.limit for standing in told] == [100, 200]


@pytest.mark.parametrize(
    ("zone", "now", "next_window"),
    [
        ("UTC", datetime(2099, 1, 31, 23, 59, 59, tzinfo=UTC), datetime(2099, 2, 1, tzinfo=UTC)),
        # A day of 23 hours, and one of 25: midnight in the named timezone is where the window ends.
        ("Europe/Berlin", datetime(2099, 3, 29, 21, 59, tzinfo=UTC), datetime(2099, 3, 29, 22, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2099, 10, 25, 22, 59, tzinfo=UTC), datetime(2099, 10, 25, 23, tzinfo=UTC)),
    ],
)
async def test_the_next_window_is_told_of_again(
    stores: Stores, told: list[Standing], zone: str, now: datetime, next_window: datetime
) -> None:
    """Months and days end where the billing timezone says, also where the clocks change."""
    limits = [Limit("tokens", 100, "day", ("task",)), Limit("tokens", 10**6, "month", ("task",))]
    for used, at in ((85, now), (10, now), (85, next_window)):
        made = intent(invocation(), estimate=Usage(used, 0, 0), created_at=at)
        await stores[0].reserve(made.id, for_model_call(limits, made, ZoneInfo(zone)))
    ends = [standing.charge.ends_at_s for standing in told]
    assert len(ends) == 2
    assert ends[0] == int(next_window.timestamp()) < ends[1]


def standing() -> Standing:
    """A month's budget of money, four fifths used."""
    charge = replace(tokens(10, 1), resource="cost", per="month", scope="caller_team=shop", ends_at_s=1_800_000_000)
    return Standing(charge, 200_000_000_000, 160_000_000_001, 1.0)


def test_the_log_and_everybody_else_hear_of_it() -> None:
    """Money is told as an exact decimal, time as an instant."""
    heard: list[NearLimit] = []
    with capture_logs() as logs:
        Thresholds([heard.append])(standing())
    assert heard == [near_limit(standing())]
    assert (logs[0]["event"], logs[0]["log_level"]) == ("quota_near_limit", "warning")
    assert (logs[0]["limit"], logs[0]["used"]) == ("200.000000000", "160.000000001")
    assert heard[0].resets_at == datetime(2027, 1, 15, 8, tzinfo=UTC)


async def test_the_operators_url_gets_it_also_at_the_second_try() -> None:
    """A receiver that fails is asked again; the body is the event."""
    receiver, taken = FaultServer(Tokenizer(models.BPE())), asyncio.Event()

    def take(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        status(204)(server, seen, writer)
        taken.set()

    receiver.script.extend([status(500), take])
    async with serving(receiver) as url:
        alerts = Alerts(f"{url}/generate", pauses_s=(0.0, 0.0))
        following = asyncio.create_task(alerts.follow())
        alerts.tell(near_limit(standing()))
        await asyncio.wait_for(taken.wait(), 60)
        following.cancel()
    said = receiver.seen[1].body
    assert (
        said
        == receiver.seen[0].body
        == msgspec.to_builtins(near_limit(standing()), str_keys=True) | {"resets_at": "2027-01-15T08:00:00Z"}
    )
    assert (said["event"], said["scope"], said["used"]) == ("quota_near_limit", "caller_team=shop", "160.000000001")


async def test_telling_never_waits() -> None:
    """With nobody at the other end, a thousand events are queued and the rest dropped, at once."""
    alerts: Alerts = Alerts("http://127.0.0.1:9")
    tell: Callable[[NearLimit], None] = alerts.tell
    started = time.monotonic()
    with capture_logs() as logs:
        for _ in range(1003):
            tell(near_limit(standing()))
    assert time.monotonic() - started < 30
    assert [entry["event"] for entry in logs] == ["alert_dropped"] * 3
