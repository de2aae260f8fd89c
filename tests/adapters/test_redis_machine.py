"""Reserve, settle, expire, reset and edit in any order, against a model in plain Python, on a real server."""

import asyncio
from typing import Any
from uuid import uuid4

from charges import rate, settled, window
from corner import corner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from gateway.adapters.redis import RedisStore
from gateway.core.errors import BudgetExceeded
from gateway.core.quotas import Charge

# So slow that nothing of the rate leaks while a test runs: the model needs no clock.
STILL_S = 10**9
AMOUNTS = st.integers(0, 60)
COST_PER_TOKEN = 3


class Budgets(RuleBasedStateMachine):
    """A token window, a token rate and a cost window, taken together by two processes in turn."""

    url = ""
    open = Bundle("open")

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"{uuid4().hex}:"
        self.loop = asyncio.Runner()
        self.stores = [RedisStore(corner(self.url, self.prefix)) for _ in range(2)]
        self.server = Redis.from_url(self.url, decode_responses=True)
        self.limits = {"window": 100, "rate": 100, "cost": 300}
        self.window = 0
        self.used: dict[str, int] = {}
        self.charged: dict[str, dict[str, int]] = {}

    def charges(self, tokens: int) -> list[Charge]:
        """What a call of so many tokens takes now. Counters of the two windows carry the window in their key."""
        return [
            window(self.limits["window"], tokens, key=f"window:{self.window}", resource="tokens"),
            rate(self.limits["rate"], tokens, resource="tokens", period_s=STILL_S),
            window(self.limits["cost"], tokens * COST_PER_TOKEN, key=f"cost:{self.window}", resource="cost"),
        ]

    @rule(target=open, tokens=AMOUNTS, which=st.integers(0, 1))
    def reserve(self, tokens: int, which: int) -> Any:
        """Admitted exactly where the model has room for all three."""
        reservation, charges = uuid4().hex, self.charges(tokens)
        fits = all(
            charge.amount == 0 or self.used.get(charge.key, 0) + charge.amount <= charge.limit for charge in charges
        )
        try:
            self.loop.run(self.stores[which].reserve(reservation, charges))
        except BudgetExceeded:
            assert not fits
            return multiple()
        assert fits
        self.charged[reservation] = {charge.key: charge.amount for charge in charges}
        for charge in charges:
            self.used[charge.key] = self.used.get(charge.key, 0) + charge.amount
        return reservation

    @rule(reservation=consumes(open), tokens=AMOUNTS, times=st.integers(1, 2), which=st.integers(0, 1))
    def settle(self, reservation: str, tokens: int, times: int, which: int) -> None:
        """The truth replaces the estimate in the window of the estimate, once."""
        truth = settled(reservation, tokens, tokens * COST_PER_TOKEN)
        for _ in range(times):
            self.loop.run(self.stores[which].settle([truth]))
        self.replace(reservation, tokens)

    @rule(used=AMOUNTS)
    def sweep(self, used: int) -> None:
        """Their process died: the sweeper settles all that are open, knowing nothing but their ids."""
        found = self.loop.run(self.stores[0].open_reservations(older_than_s=0))
        assert {reservation.id for reservation in found} == set(self.charged)
        truths = [settled(reservation.id, used, used * COST_PER_TOKEN) for reservation in found]
        self.loop.run(self.stores[0].settle(truths))
        for reservation in list(self.charged):
            self.replace(reservation, used)

    @rule()
    def next_window(self) -> None:
        """The calendar moves on: new counters; reservations of the old window stay with the old ones."""
        self.window += 1

    @rule(which=st.sampled_from(["window", "rate", "cost"]), limit=st.integers(0, 400))
    def edit(self, which: str, limit: int) -> None:
        """A limit is edited while calls are under way."""
        self.limits[which] = limit

    @invariant()
    def counters_are_as_the_model_says(self) -> None:
        """Never negative, never over, nothing lost: every counter of every window."""
        for key, used in self.used.items():
            assert used >= 0
            assert self.counted(key) == used

    def teardown(self) -> None:
        """Nothing leaks: when all is settled, no record and no open reservation is left, and only the truth counts."""
        self.sweep(0)
        self.counters_are_as_the_model_says()
        assert not self.server.exists(f"{self.prefix}open")
        assert not list(self.server.scan_iter(f"{self.prefix}r:*"))
        for store in self.stores:
            self.loop.run(store.close())
        self.server.close()
        self.loop.close()

    def replace(self, reservation: str, tokens: int) -> None:
        for key, amount in self.charged.pop(reservation, {}).items():
            truth = tokens * COST_PER_TOKEN if key.startswith("cost") else tokens
            self.used[key] += truth - amount

    def counted(self, key: str) -> int:
        kept = str(self.server.get(f"{self.prefix}q:{key}") or "0")
        return round(float(kept.split()[0]))


def test_budgets_are_never_negative_never_over_and_never_leak(valkey: str) -> None:
    """Any order of reserving, settling, dying, resetting and editing leaves the counters where the model has them."""
    Budgets.url = valkey
    run_state_machine_as_test(
        Budgets,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
