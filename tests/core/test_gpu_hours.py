"""GPU-hours: every nano-unit of the bill is somebody's, whoever asked in whatever order."""

import random
from datetime import UTC, date, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.gpu_hours import IDLE, Who, by_largest_remainder, shares
from gateway.core.inference import Usage
from gateway.core.prices import GpuHour, Tariff
from gateway.core.quotas import spent
from gateway.core.task import Price

NAMES = st.sampled_from("abcdefgh")
WHO: st.SearchStrategy[Who] = st.tuples(NAMES, NAMES, NAMES, NAMES)
CALLS = st.lists(st.tuples(WHO, st.integers(0, 10**7)), max_size=30)
BILL = st.integers(0, 10**15)
CAPACITY = st.integers(1, 10**9)
MAY = datetime(2026, 5, 1, tzinfo=UTC)


def used(calls: list[tuple[Who, int]]) -> dict[Who, int]:
    """Tokens by who asked, in the order of the calls."""
    found: dict[Who, int] = {}
    for who, tokens in calls:
        found[who] = found.get(who, 0) + tokens
    return found


@given(BILL, CAPACITY, CALLS)
def test_the_shares_are_the_bill(bill: int, capacity: int, calls: list[tuple[Who, int]]) -> None:
    """Their sum is the bill to the last nano-unit; each is the exact share, rounded to a neighbour."""
    lines = shares(GpuHour(bill, capacity), used(calls))
    whole = max(capacity, sum(tokens for _, tokens in calls))
    assert sum(cost for _, cost in lines.values()) == bill
    assert sum(tokens for tokens, _ in lines.values()) == whole
    assert all(abs(cost - Fraction(bill * tokens, whole)) < 1 for tokens, cost in lines.values())


@given(BILL, CAPACITY, CALLS, st.randoms(use_true_random=False))
def test_the_order_of_calls_does_not_matter(
    bill: int, capacity: int, calls: list[tuple[Who, int]], dice: random.Random
) -> None:
    """Any permutation gives everybody the same."""
    mixed = dice.sample(calls, len(calls))
    assert shares(GpuHour(bill, capacity), used(calls)) == shares(GpuHour(bill, capacity), used(mixed))


@given(BILL, CAPACITY, CALLS)
def test_a_reservation_is_never_less_than_the_share(bill: int, capacity: int, calls: list[tuple[Who, int]]) -> None:
    """What budgets counted for somebody's calls, each for itself, bounds what the hour is shared out to."""
    rate = GpuHour(bill, capacity)
    for who, (_, cost) in shares(rate, used(calls)).items():
        provisional = sum(rate.usage(tokens, 0).provisional_nano for each, tokens in calls if each == who)
        assert who == IDLE or provisional >= cost


@pytest.mark.parametrize(
    ("tokens", "idle"), [({}, 100), ({("a", "a", "a", "t"): 75}, 25), ({("a", "a", "a", "t"): 300}, 0)]
)
def test_idle_is_what_the_capacity_was_not_asked_for(tokens: dict[Who, int], idle: int) -> None:
    """An hour without calls is idle whole; one beyond its capacity has no idle part, and nobody pays more for it."""
    assert shares(GpuHour(100, 100), tokens)[IDLE] == (idle, idle)


def test_who_lost_most_by_rounding_gets_the_rest() -> None:
    """Of 10 split 1:1:1 the first by name gets one more; of 2 split 2:1, who has the larger remainder."""
    assert by_largest_remainder(10, {("c",): 1, ("a",): 1, ("b",): 1}) == {("a",): 4, ("b",): 3, ("c",): 3}
    assert by_largest_remainder(2, {("a",): 1, ("b",): 2}) == {("a",): 1, ("b",): 1}


def test_a_call_costs_nothing_until_its_hour_is_shared_out() -> None:
    """Budgets count it all the same, at its share of a full hour; a price per token is as before."""
    hour = Price(start=date(2026, 2, 1), per_gpu_hour="2.00", gpus=2, tokens_per_gpu_hour=1_000_000)
    tariff = Tariff((Price(start=date(2026, 1, 1), input_per_million="1", output_per_million="1"), hour))
    usage = tariff.usage(900, 100, MAY)
    assert usage == Usage(900, 100, 0, 2_000_000)
    assert (spent("cost", usage), spent("tokens", usage)) == (2_000_000, 1000)
    assert tariff.gpu_hour(MAY) == GpuHour(4_000_000_000, 2_000_000)
    assert tariff.gpu_since() == date(2026, 2, 1)
    assert tariff.gpu_hour(datetime(2026, 1, 31, 23, 59, tzinfo=UTC)) is None
    assert tariff.usage(900, 100, datetime(2026, 1, 31, tzinfo=UTC)).provisional_nano == 0


@pytest.mark.parametrize(
    "amounts",
    [
        {},
        {"input_per_million": "1"},
        {"per_gpu_hour": "2"},
        {"tokens_per_gpu_hour": 5},
        {"input_per_million": "1", "output_per_million": "1", "per_gpu_hour": "2", "tokens_per_gpu_hour": 5},
    ],
)
def test_a_price_is_of_one_kind(amounts: dict[str, str]) -> None:
    """Half a price, none or both kinds at once are refused."""
    with pytest.raises(ValueError, match="not both"):
        Tariff((Price(start=date(2026, 1, 1), **amounts),))  # type: ignore[arg-type]
