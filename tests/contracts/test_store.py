"""What every Store promises to the engine and the meter, kept by the real one over a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from charges import held, rate, settled, window
from corner import corner

from gateway.adapters.redis import RedisStore
from gateway.core.engine import Store
from gateway.core.errors import BudgetExceeded, QuotaExceeded


@pytest_asyncio.fixture
async def stores(valkey: str) -> AsyncIterator[tuple[Store, Store]]:
    """The stores of two gateway processes that share one server."""
    settings = corner(valkey)
    first, second = RedisStore(settings), RedisStore(settings)
    yield first, second
    await first.close()
    await second.close()


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    """One of the two."""
    return stores[0]


@pytest.mark.parametrize("charge", [rate(3), window(3), held(3)], ids=["rate", "window", "held"])
async def test_a_quota_admits_its_limit_and_not_one_more(stores: tuple[Store, Store], charge: object) -> None:
    """However many processes ask, the whole limit is admitted at once, and then nothing."""
    for number in range(3):
        await stores[number % 2].admit(f"i{number}", [charge], None)
    for store in stores:
        with pytest.raises(QuotaExceeded):
            await store.admit("late", [charge], None)


async def test_a_refused_request_takes_nothing(store: Store) -> None:
    """All charges or none: where one quota refuses, the others are as they were."""
    wide, narrow, permit = rate(2), window(1), held(2)
    await store.admit("a", [narrow], None)
    for _ in range(5):
        with pytest.raises(QuotaExceeded) as refused:
            await store.admit("b", [wide, permit, narrow], None)
    assert refused.value.extra["remaining"] == 0
    assert refused.value.extra["per"] == "day"
    assert 3590 < (refused.value.retry_after_s or 0) <= 3600
    admission = await store.admit("c", [wide, permit], None)
    assert [(each.resource, each.limit, each.remaining) for each in admission.rates] == [("requests", 2, 1)]


async def test_the_longest_wait_is_the_answer(store: Store) -> None:
    """Where several quotas refuse, the error is about the one that opens last."""
    await store.admit("a", [rate(1), window(1)], None)
    with pytest.raises(QuotaExceeded) as refused:
        await store.admit("b", [rate(1), window(1)], None)
    assert refused.value.extra["per"] == "day"


async def test_what_can_never_fit_has_no_retry(store: Store) -> None:
    """An estimate above the whole limit is refused, and waiting is not advised."""
    with pytest.raises(BudgetExceeded) as refused:
        await store.reserve("r", [window(10, 11, resource="tokens")])
    assert refused.value.retry_after_s is None


async def test_a_rate_says_when_there_is_room_again(store: Store) -> None:
    """Six per minute, all used: one more fits in ten seconds."""
    for number in range(6):
        await store.admit(f"i{number}", [rate(6)], None)
    with pytest.raises(QuotaExceeded) as refused:
        await store.admit("late", [rate(6)], None)
    assert 9 < (refused.value.retry_after_s or 0) <= 10
    assert 59 < float(str(refused.value.extra["reset_s"])) <= 60


async def test_looking_takes_nothing(store: Store) -> None:
    """A charge of 0 shows in the headers what is left, also when that is nothing, and never refuses."""
    await store.reserve("r", [window(10, 10, resource="tokens")])
    for _ in range(2):
        admission = await store.admit("i", [window(10, 0, resource="tokens")], None)
        assert [(each.resource, each.remaining) for each in admission.rates] == [("tokens", 0)]


async def test_a_kept_answer_is_found_by_everyone(stores: tuple[Store, Store]) -> None:
    """What one process keeps the other finds, byte by byte, and a charge is taken all the same."""
    answer = bytes(range(256))
    assert (await stores[0].admit("a", [rate(5)], "key")).kept is None
    await stores[0].finish("a", [], [], ("key", answer, 60))
    admission = await stores[1].admit("b", [rate(5)], "key")
    assert admission.kept == answer
    assert admission.rates[0].remaining == 3
    assert (await stores[1].admit("c", [], "other")).kept is None


async def test_one_process_claims_the_run_of_an_answer(stores: tuple[Store, Store]) -> None:
    """Who finds no answer claims its run, once over all processes; the claim ends with the answer, or without one, and
    only by whoever has it; who does not want to keep the answer claims nothing.
    """
    one, two = stores
    assert (await one.admit("z", [], "key", claims=False)).claim == "none"
    assert (await one.admit("a", [], "key")).claim == "mine"
    assert (await two.admit("b", [rate(5)], "key")).claim == (await two.look("b", "key")).claim == "other"
    await two.finish("b", [], [], None, "key")
    await two.renew("b", "key")
    assert (await two.look("b", "key")).claim == "other"
    await one.finish("a", [], [], None, "key")
    assert (await two.look("b", "key")).claim == "mine"
    await two.finish("b", [], [], ("key", b"answer", 60), "key")
    assert (await one.look("a", "key")).kept == b"answer"


async def test_permits_come_back_when_the_inference_ends(stores: tuple[Store, Store]) -> None:
    """Finish gives back exactly the permit of this inference."""
    for number in range(2):
        await stores[0].admit(f"i{number}", [held(2)], None)
    await stores[0].finish("i0", [held(2)], [], None)
    await stores[0].finish("i0", [held(2)], [], None)
    await stores[1].admit("i2", [held(2)], None)
    with pytest.raises(QuotaExceeded):
        await stores[1].admit("i3", [held(2)], None)


async def left(store: Store, limit: int) -> int:
    """What is left of the token window."""
    admission = await store.admit("look", [window(limit, 0, resource="tokens")], None)
    return admission.rates[0].remaining


async def test_a_settlement_replaces_the_estimate_exactly_once(stores: tuple[Store, Store]) -> None:
    """Settling again, from anywhere, with anything, changes nothing."""
    await stores[0].reserve("r", [window(100, 60, resource="tokens")])
    assert await left(stores[0], 100) == 40
    await stores[0].settle([settled("r", 10)])
    await stores[1].settle([settled("r", 0)])
    await stores[1].finish("i", [], [settled("r", 90), settled("unknown", 90)], None)
    assert await left(stores[0], 100) == 90


async def test_more_than_the_estimate_is_taken_in_full(store: Store) -> None:
    """Where the server counted more than was reserved, the budget shows it, beyond its limit if need be."""
    await store.reserve("r", [window(100, 60, resource="tokens")])
    await store.settle([settled("r", 130)])
    assert await left(store, 200) == 70
    with pytest.raises(BudgetExceeded):
        await store.reserve("s", [window(100, 1, resource="tokens")])


async def test_an_edited_limit_holds_at_once_and_forgets_nothing(store: Store) -> None:
    """A lower limit refuses what is over it, a higher one admits the difference."""
    for resource, charge in (("window", window), ("rate", rate)):
        await store.reserve(f"{resource}1", [charge(100, 60, resource="tokens")])
        with pytest.raises(BudgetExceeded):
            await store.reserve(f"{resource}2", [charge(50, 1, resource="tokens")])
        await store.reserve(f"{resource}3", [charge(120, 60, resource="tokens")])
        with pytest.raises(BudgetExceeded):
            await store.reserve(f"{resource}4", [charge(120, 10, resource="tokens")])


async def test_reserving_again_under_the_same_id_takes_nothing_more(store: Store) -> None:
    """A reservation that was repeated because its answer got lost counts once."""
    for _ in range(3):
        await store.reserve("r", [window(100, 60, resource="tokens")])
    assert await left(store, 100) == 40


async def test_amounts_are_exact_up_to_the_largest_limit(store: Store) -> None:
    """One nano-dollar more or less is seen on a budget of nine million dollars."""
    limit = 2**53 - 1
    await store.reserve("a", [window(limit, limit - 1, resource="cost")])
    await store.reserve("b", [window(limit, 1, resource="cost")])
    with pytest.raises(BudgetExceeded):
        await store.reserve("c", [window(limit, 1, resource="cost")])
    await store.settle([settled("a", cost_nano=limit - 2)])
    await store.reserve("d", [window(limit, 1, resource="cost")])
    with pytest.raises(BudgetExceeded):
        await store.reserve("e", [window(limit, 1, resource="cost")])


async def test_64_at_once_over_two_processes_get_exactly_what_there_is(stores: tuple[Store, Store]) -> None:
    """A budget for 37 calls lets 37 of 64 concurrent reservations through, in every mix of two stores."""
    charges = [
        window(37 * 5, 5, resource="tokens"),
        rate(37 * 7, 7, resource="cost", period_s=10**6),
        window(10**9, 1, key="wide", resource="cost"),
    ]
    outcomes = await asyncio.gather(
        *(stores[number % 2].reserve(f"r{number}", charges) for number in range(64)), return_exceptions=True
    )
    assert outcomes.count(None) == 37
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == 27
