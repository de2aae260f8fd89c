"""The meter: whatever a store or a server answers, a call is reserved, counted and given back once."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from zoneinfo import ZoneInfo

import pytest
from stories import invocation, new_id

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.inference import NOTHING_USED, Intent, Usage
from gateway.core.meter import Meter, MeteredModel, Settlement
from gateway.core.prices import Tariff
from gateway.core.quotas import Charge, Limit
from gateway.core.sweep import sweep_for_ever
from gateway.core.task import Price

MODEL = MeteredModel("m", Tariff((Price(start=date(2026, 1, 1), input_per_million="1.00", output_per_million="1.00"),)))
LIMIT = Limit("cost", 10**9, "month", ("task",))


class Stores:
    """A store whose answers get lost on the way, where `deaf`; a ledger that takes everything."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.deaf = deaf
        self.reserved: list[str] = []
        self.intents: list[Intent] = []

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        self.reserved.append(reservation_id)
        if self.deaf:
            raise Unavailable("no answer")

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Nothing to do."""

    async def intend(self, intent: Intent) -> None:
        self.intents.append(intent)


def meter(stores: Stores) -> Meter:
    """With one budget."""
    return Meter(invocation(), [LIMIT], stores, stores, Clock(new_id=new_id), ZoneInfo("UTC"))


async def test_a_reservation_whose_answer_was_lost_is_given_back() -> None:
    """The store may have taken it; nothing was called, so nothing is in the books."""
    stores = Stores(deaf=True)
    metered = meter(stores)
    with pytest.raises(Unavailable):
        async with metered.call(MODEL, "r", 10, 1):
            pytest.fail("no call without its reservation")
    assert [(each.reservation_id, each.usage) for each in metered.settlements] == [(stores.reserved[0], NOTHING_USED)]
    assert (metered.end(), stores.intents) == ((), [])


async def test_a_reservation_that_was_not_waited_for_is_given_back() -> None:
    """The deadline came while the store was asked: it may have taken it all the same."""
    asked = asyncio.Event()

    class Slow(Stores):
        async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
            self.reserved.append(reservation_id)
            asked.set()
            await asyncio.Event().wait()

    stores = Slow()
    metered = meter(stores)

    async def call() -> None:
        async with metered.call(MODEL, "r", 10, 1):
            pytest.fail("no call without its reservation")

    calling = asyncio.create_task(call())
    await asked.wait()
    calling.cancel()
    await asyncio.wait({calling})
    assert calling.cancelled()
    assert [(each.reservation_id, each.usage) for each in metered.settlements] == [(stores.reserved[0], NOTHING_USED)]


@pytest.mark.parametrize("counted", [(-5, 1), (5, -1), (2**40, 1)])
async def test_what_cannot_be_a_count_is_not_settled(counted: tuple[int, int]) -> None:
    """A server that says it read less than nothing, or more than there is, earns nobody any money back."""
    metered = meter(Stores())
    async with metered.call(MODEL, "r", 10, 1) as wire:
        wire.settle(*counted)
    (call,) = metered.end()
    assert (call.outcome, call.settled, call.usage) == ("ok", False, Usage(10, 1, 11_000))
    assert [each.usage for each in metered.settlements] == [Usage(10, 1, 11_000)]


async def test_the_sweeper_never_ends_by_itself() -> None:
    """Whatever it meets, it sweeps again: with it, reservations would stop coming back."""

    class Broken:
        turns = 0

        async def orphans(self, older_than: object) -> Sequence[Intent]:
            self.turns += 1
            if self.turns > 2:
                raise asyncio.CancelledError
            raise KeyError("what nobody thought of")

    broken = Broken()
    with suppress(asyncio.CancelledError):
        await sweep_for_ever(broken, broken, Clock(new_id=new_id), 0, 0)  # type: ignore[arg-type]
    assert broken.turns == 3
