"""Money: exact, never rounded down, never a float."""

from datetime import UTC, date, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.prices import NANO, Tariff, from_nano, to_nano
from gateway.core.task import Price

MAY = datetime(2026, 5, 1, tzinfo=UTC)


def price(start: date, per_input: str, per_output: str) -> Price:
    return Price(start=start, input_per_million=per_input, output_per_million=per_output)


@pytest.mark.parametrize("text", ["", "abc", "-1", "NaN", "Infinity", "1e-10", "0.0000000001", "1,5", "0x10"])
def test_an_amount_that_is_no_money_is_refused(text: str) -> None:
    """Only finite, non-negative decimals of at most nine places are money."""
    with pytest.raises(ValueError, match="amount of money"):
        to_nano(text)


@given(st.integers(0, 10**18))
def test_amounts_survive_the_round_trip(nano: int) -> None:
    """Text of an amount reads back as the same amount, to the nano."""
    assert to_nano(from_nano(nano)) == nano


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.decimals(0, 1000, places=9), st.decimals(0, 1000, places=9))
def test_a_call_costs_its_exact_price_rounded_up(inputs: int, outputs: int, per_in: object, per_out: object) -> None:
    """Cost is never below the exact price, and less than two nano above it."""
    tariff = Tariff([price(date(2026, 1, 1), str(per_in), str(per_out))])
    exact = (Fraction(str(per_in)) * inputs + Fraction(str(per_out)) * outputs) * NANO / 1_000_000
    assert exact <= tariff.cost_nano(inputs, outputs, MAY) < exact + 2


def test_the_entry_valid_at_the_time_of_the_call_applies() -> None:
    """A price applies from its date on, and not a moment earlier."""
    tariff = Tariff([price(date(2026, 5, 1), "2", "2"), price(date(2026, 1, 1), "1", "1")])
    assert tariff.cost_nano(1_000_000, 0, MAY) == 2 * NANO
    assert tariff.cost_nano(1_000_000, 0, datetime(2026, 4, 30, 23, 59, 59, tzinfo=UTC)) == NANO


def test_before_the_first_price_nothing_can_be_priced() -> None:
    """No silent zero: a call before the first entry has no cost, and that is an error."""
    with pytest.raises(LookupError, match="2025-12-31"):
        Tariff([price(date(2026, 1, 1), "1", "1")]).cost_nano(1, 1, datetime(2025, 12, 31, tzinfo=UTC))


def test_two_prices_from_one_day_are_refused() -> None:
    """Which of them would apply could not be said."""
    with pytest.raises(ValueError, match="same day"):
        Tariff([price(date(2026, 1, 1), "1", "1"), price(date(2026, 1, 1), "2", "2")])
