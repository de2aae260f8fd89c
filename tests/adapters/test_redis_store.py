"""What the Redis adapter does beyond the port: time that passes, stores that stall, die and come back."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio
from charges import held, rate, settled, window
from corner import corner
from redis import Redis

from gateway.adapters.redis import RedisSettings, RedisStore, StoreHealth
from gateway.core.errors import BudgetExceeded, QuotaExceeded, Unavailable
from gateway.local.valkey import Valkey

MINUTE_US = 60_000_000


@pytest.fixture
def settings(valkey: str) -> RedisSettings:
    """A corner of the shared server for one test."""
    return corner(valkey)


@pytest.fixture
def server(settings: RedisSettings) -> Iterator[Redis]:
    """The server as an operator sees it."""
    with Redis.from_url(settings.url, decode_responses=True) as client:
        yield client


@pytest_asyncio.fixture
async def store(settings: RedisSettings) -> AsyncIterator[RedisStore]:
    """A store on the shared server."""
    store = RedisStore(settings)
    yield store
    await store.close()


@pytest.fixture
def mortal() -> Iterator[Valkey]:
    """A server of its own, for tests that stop it."""
    valkey = Valkey()
    valkey.start()
    yield valkey
    valkey.remove()


@pytest_asyncio.fixture
async def frail(mortal: Valkey) -> AsyncIterator[RedisStore]:
    """A store on a server that may die; its breaker never rests, so that no test has to wait."""
    store = RedisStore(RedisSettings(url=mortal.url, timeout_s=1.0, rest_s=0.0))
    yield store
    await store.close()


def age(server: Redis, key: str, by_us: int) -> None:
    """Let time pass for a rate: move its last change into the past."""
    level, at_us = str(server.get(key)).split()
    server.set(key, f"{level} {int(at_us) - by_us}")


async def test_a_rate_refills_evenly(store: RedisStore, server: Redis, settings: RedisSettings) -> None:
    """Ten seconds of six per minute give room for one, not for two."""
    for number in range(6):
        await store.admit(f"i{number}", [rate(6)], None)
    age(server, f"{settings.prefix}q:rate", MINUTE_US // 6)
    await store.admit("one", [rate(6)], None)
    with pytest.raises(QuotaExceeded):
        await store.admit("two", [rate(6)], None)


async def test_a_permit_of_a_dead_process_comes_back(store: RedisStore, server: Redis, settings: RedisSettings) -> None:
    """A permit whose lease has ended is free again."""
    await store.admit("dead", [held(1)], None)
    with pytest.raises(QuotaExceeded):
        await store.admit("next", [held(1)], None)
    server.zadd(f"{settings.prefix}q:held", {"dead": time.time() * 1000 - 1})
    await store.admit("next", [held(1)], None)


async def test_a_rate_gives_back_only_what_has_not_leaked(
    store: RedisStore, server: Redis, settings: RedisSettings
) -> None:
    """An estimate that has leaked away is not given back out of what others took later."""
    rate_of = {"resource": "tokens"}
    await store.reserve("early", [rate(100, 50, **rate_of)])
    record, counter = f"{settings.prefix}r:early", f"{settings.prefix}q:rate"
    server.hset(record, "at", int(str(server.hget(record, "at"))) - MINUTE_US)
    age(server, counter, MINUTE_US)
    await store.reserve("late", [rate(100, 80, **rate_of)])
    await store.settle([settled("early", 0)])
    with pytest.raises(BudgetExceeded):
        await store.reserve("over", [rate(100, 30, **rate_of)])


async def test_a_rate_gives_back_what_was_not_used(store: RedisStore) -> None:
    """Straight after the call the whole difference is there again."""
    await store.reserve("a", [rate(100, 90, resource="tokens")])
    await store.settle([settled("a", 10)])
    await store.reserve("b", [rate(100, 90, resource="tokens")])


async def test_a_late_settlement_leaves_the_new_window_alone(
    store: RedisStore, server: Redis, settings: RedisSettings
) -> None:
    """What was reserved in a window that has ended is settled there, whether its counter still exists or not."""
    old = [
        window(100, 60, key="just", resource="tokens", ends_in_s=-60),
        window(100, 60, key="long", resource="tokens", ends_in_s=-7200),
    ]
    await store.reserve("r", [*old, window(100, 60, key="new", resource="cost")])
    await store.settle([settled("r", 90, 60)])
    assert server.get(f"{settings.prefix}q:just") == "90"
    assert server.get(f"{settings.prefix}q:long") is None
    assert server.get(f"{settings.prefix}q:new") == "60"


async def test_counters_do_not_outlive_their_window(store: RedisStore, server: Redis, settings: RedisSettings) -> None:
    """Every key that the store writes ends by itself, an hour after its window at the latest."""
    await store.admit("i", [rate(9), window(9), held(9)], None)
    await store.reserve("r", [window(9, key="tokens", resource="tokens")])
    await store.finish("j", [], [settled("r", 20)], ("key", b"answer", 60))
    keys = {str(key).removeprefix(settings.prefix) for key in server.scan_iter(f"{settings.prefix}*")}
    assert keys == {"q:rate", "q:window", "q:held", "q:tokens", "c:key", "epoch"}
    for key in keys - {"epoch"}:
        assert 0 < server.ttl(settings.prefix + key) <= 7200


async def test_open_reservations_are_those_not_settled(store: RedisStore) -> None:
    """The sweeper sees the oldest first, with their age, and settles them without knowing their charges."""
    for name in ("a", "b", "c"):
        await store.reserve(name, [window(100, 10, resource="tokens")])
    await store.settle([settled("b", 10)])
    found = await store.open_reservations(older_than_s=0)
    assert [reservation.id for reservation in found] == ["a", "c"]
    assert found[0].age_s >= found[1].age_s >= 0
    assert await store.open_reservations(older_than_s=60) == []
    await store.settle([settled(reservation.id, 0) for reservation in found])
    assert await store.open_reservations(older_than_s=0) == []
    admission = await store.admit("look", [window(100, 0, resource="tokens")], None)
    assert admission.rates[0].remaining == 90


async def test_scripts_are_loaded_again(store: RedisStore, server: Redis) -> None:
    """Somebody empties the script cache: nobody notices, and nothing is taken twice."""
    await store.admit("a", [window(9)], "key")
    server.script_flush()
    admission = await store.admit("b", [window(9)], "key")
    assert admission.rates[0].remaining == 7


async def test_keys_version_is_shared(store: RedisStore, settings: RedisSettings) -> None:
    """A revocation in one process is seen in another."""
    other = RedisStore(settings)
    before = await other.keys_version()
    await store.bump_keys_version()
    assert await other.keys_version() == before + 1
    await other.close()


async def test_replicas_count_each_other(settings: RedisSettings, server: Redis) -> None:
    """A process that starts is counted; one that closes, or is not heard any more, is not."""
    first, second, third = (RedisStore(settings) for _ in range(3))
    server.zadd(f"{settings.prefix}replicas", {"silent": time.time() * 1000 - 60_000})
    await first.start()
    await second.start()
    assert second.health() == StoreHealth(up=True, degraded=False, replicas=2)
    await first.close()
    await third.start()
    assert third.health().replicas == 2
    await second.close()
    await third.close()


async def test_a_cancelled_caller_disturbs_nobody(store: RedisStore) -> None:
    """Requests that share a batch with one that was cancelled get their own answers."""
    await store.finish("x", [], [], ("key", b"answer", 60))
    asked = [asyncio.create_task(store.admit(f"i{number}", [], "key")) for number in range(20)]
    await asyncio.sleep(0)
    for task in asked[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [outcome.kept for outcome in outcomes[1::2] if not isinstance(outcome, BaseException)] == [b"answer"] * 10
    assert (await store.admit("after", [], "key")).kept == b"answer"


async def test_a_store_that_died_refuses_money_and_shares_out_requests(mortal: Valkey, settings: RedisSettings) -> None:
    """Without the store budgets refuse; request quotas go on at this process's share, and say so."""
    alike = corner(mortal.url, rest_s=0.0)
    first, second = RedisStore(alike), RedisStore(alike)
    await second.start()
    await first.start()
    mortal.stop()
    quotas = [rate(8, period_s=10**6), window(6), held(10)]
    admissions = [await first.admit(f"i{number}", [*quotas, rate(9, 0, key="look")], "key") for number in range(3)]
    assert all(admission.degraded and admission.kept is None for admission in admissions)
    assert [(each.limit, each.remaining) for each in admissions[2].rates] == [(3, 0)]
    with pytest.raises(QuotaExceeded):
        await first.admit("more", quotas, None)
    with pytest.raises(Unavailable):
        await first.reserve("r", [window(9, resource="tokens")])
    with pytest.raises(Unavailable):
        await first.settle([settled("r")])
    assert first.health() == StoreHealth(up=False, degraded=True, replicas=2)
    await first.close()
    await second.close()


async def test_permits_taken_alone_come_back(mortal: Valkey, frail: RedisStore) -> None:
    """A permit that was taken from own memory is given back there, although finish cannot reach the store."""
    mortal.stop()
    await frail.admit("a", [held(1)], None)
    with pytest.raises(QuotaExceeded):
        await frail.admit("b", [held(1)], None)
    with pytest.raises(Unavailable):
        await frail.finish("a", [held(1)], [], None)
    await frail.admit("b", [held(1)], None)


async def test_a_store_that_came_back_is_used_at_once(mortal: Valkey, frail: RedisStore) -> None:
    """After a restart the store counts again, and what was counted alone is forgotten."""
    await frail.admit("a", [window(5)], None)
    mortal.stop()
    assert (await frail.admit("b", [window(5)], None)).degraded
    mortal.start()
    admission = await frail.admit("c", [window(5)], None)
    assert not admission.degraded
    assert admission.rates[0].remaining == 4
    assert frail.health() == StoreHealth(up=True, degraded=False, replicas=1)


async def test_a_restart_between_two_requests_fails_none(mortal: Valkey, frail: RedisStore) -> None:
    """A line that was cut while idle is made anew before anything is sent."""
    await frail.ping()
    await asyncio.to_thread(mortal.stop)
    mortal.start()
    await frail.ping()


async def test_a_store_that_stalls_is_given_up_in_time(mortal: Valkey, frail: RedisStore) -> None:
    """A server that takes connections and never answers costs a request the read timeout, not its patience."""
    await frail.ping()
    os.kill(mortal.pid, signal.SIGSTOP)
    start_s = time.monotonic()
    with pytest.raises(Unavailable):
        await frail.reserve("r", [window(9, resource="tokens")])
    waited_s = time.monotonic() - start_s
    os.kill(mortal.pid, signal.SIGCONT)
    assert 0.9 < waited_s < 30
    await frail.ping()


async def test_the_breaker_answers_for_a_dead_store(mortal: Valkey) -> None:
    """After three failures in a row nothing is sent for a while, and what waits is answered at once."""
    store = RedisStore(RedisSettings(url=mortal.url, timeout_s=0.5, rest_s=600.0))
    await store.ping()
    os.kill(mortal.pid, signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await store.ping()
    start_s = time.monotonic()
    for _ in range(100):
        with pytest.raises(Unavailable):
            await store.ping()
    assert time.monotonic() - start_s < 30, "a hundred timeouts take longer"
    os.kill(mortal.pid, signal.SIGCONT)
    await store.close()


async def restarted_empty(
    valkey: Valkey, hook: Callable[[RedisStore], Awaitable[None]]
) -> tuple[RedisStore, RedisStore]:
    """Two stores with the hook, of a server that was good and then was started anew."""
    settings = corner(valkey.url)
    stores = RedisStore(settings), RedisStore(settings)
    await stores[0].reserve("before", [window(100, 10, resource="tokens")])
    await stores[1].ping()
    valkey.stop()
    valkey.start()
    for store in stores:
        store.on_empty = hook
    return stores


async def test_an_empty_store_is_rebuilt_before_the_first_reservation(mortal: Valkey) -> None:
    """Many reservers of two processes meet an empty store: one rebuilds, all wait, and the old usage counts."""
    calls = 0

    async def from_ledger(store: RedisStore) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        under_way = [("before", [window(100, 10, resource="tokens")])]
        await store.rebuild([(window(100, resource="tokens"), 60)], under_way)

    stores = await restarted_empty(mortal, from_ledger)
    outcomes = await asyncio.gather(
        *(stores[number % 2].reserve(f"r{number}", [window(100, 3, resource="tokens")]) for number in range(20)),
        return_exceptions=True,
    )
    assert calls == 1
    assert outcomes.count(None) == 10  # 60 used, 10 under way, 30 left
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == 10
    await stores[1].settle([settled("before", 7)])
    await stores[0].reserve("last", [window(100, 3, resource="tokens")])
    for store in stores:
        await store.close()


async def test_no_reservation_before_the_ledger_could_be_read(mortal: Valkey) -> None:
    """Where the ledger is away too, reservations are refused, and the next one tries to rebuild again."""

    async def broken(store: RedisStore) -> None:
        raise ValueError("a defect in the hook")

    stores = await restarted_empty(mortal, broken)
    for store in stores:
        with pytest.raises(Unavailable):
            await store.reserve("r", [window(100, 3, resource="tokens")])
        store.on_empty = None
    await stores[1].reserve("r", [window(100, 3, resource="tokens")])
    for store in stores:
        await store.close()


async def test_a_rebuild_corrects_a_store_with_old_data(settings: RedisSettings, server: Redis) -> None:
    """A server that came back with yesterday's data is told the truth: old reservations go, usage is overwritten."""

    async def from_ledger(store: RedisStore) -> None:
        await store.rebuild([(window(100, resource="tokens"), 25)], [])

    store = RedisStore(settings, from_ledger)
    store.on_empty = None
    await store.reserve("old", [window(100, 40, resource="tokens"), window(100, 30, key="other", resource="cost")])
    server.set(f"{settings.prefix}epoch", "a server of yesterday")
    store.on_empty = from_ledger
    await store.reserve("new", [window(100, 5, resource="tokens")])
    await store.settle([settled("old", 99, 99)])
    assert server.get(f"{settings.prefix}q:window") == "30"
    assert server.get(f"{settings.prefix}q:other") == "0"
    assert [reservation.id for reservation in await store.open_reservations(0)] == ["new"]
    await store.close()


async def test_a_good_store_is_not_rebuilt(store: RedisStore) -> None:
    """A rebuild that comes too late changes nothing."""
    await store.reserve("r", [window(100, 40, resource="tokens")])
    await store.rebuild([(window(100, resource="tokens"), 0)], [])
    admission = await store.admit("look", [window(100, 0, resource="tokens")], None)
    assert admission.rates[0].remaining == 60
