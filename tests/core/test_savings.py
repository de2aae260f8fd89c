"""Estimates of what was not spent: exact where everything is known, honest where it is not."""

import random
from datetime import UTC, date, datetime

from gateway.core.prices import Tariff
from gateway.core.savings import Estimate, Outputs, Sampled, suppressed
from gateway.core.task import Price

MAY = datetime(2026, 5, 1, tzinfo=UTC)
# 1 nano-unit per input token before June, 2 from then on; 10 and 20 per output token.
TARIFFS = {
    "m": Tariff(
        (
            Price(start=date(2026, 1, 1), input_per_million="0.001", output_per_million="0.01"),
            Price(start=date(2026, 6, 1), input_per_million="0.002", output_per_million="0.02"),
        )
    )
}
ONE_TOKEN = Outputs(50, 50, 50)


def test_a_census_has_no_interval() -> None:
    """Every prompt counted, every answer one token: the estimate is the sum, each prompt at the price of its time."""
    june = datetime(2026, 6, 1, tzinfo=UTC)
    found = suppressed(2, [Sampled(MAY, "m", 100), Sampled(june, "m", 100)], ONE_TOKEN, TARIFFS)
    assert found == Estimate(2, 2, 2 * (150 + 15.0), 0.0)


def test_a_sample_speaks_for_all() -> None:
    """The mean times the number; what varies, prompts or answers, widens the interval."""
    samples = [Sampled(MAY, "m", tokens) for tokens in (90, 100, 110)]
    even = suppressed(3000, [Sampled(MAY, "m", 100)] * 3, ONE_TOKEN, TARIFFS)
    prompts = suppressed(3000, samples, ONE_TOKEN, TARIFFS)
    both = suppressed(3000, samples, Outputs(2, 2, 4), TARIFFS)
    assert even.nano == prompts.nano == both.nano == 3000 * 110
    assert even.half_nano == 0.0
    assert both.half_nano is not None
    assert prompts.half_nano is not None
    assert 0 < prompts.half_nano < both.half_nano


def test_too_small_a_sample_says_nothing() -> None:
    """One prompt has no spread; nothing suppressed needs no sample; what is unknown stays so in a sum."""
    unknown = suppressed(10, [Sampled(MAY, "m", 1)], ONE_TOKEN, TARIFFS)
    nothing = suppressed(0, [], ONE_TOKEN, TARIFFS)
    assert (unknown.nano, unknown.half_nano) == (None, None)
    assert (nothing.nano, nothing.half_nano) == (0.0, 0.0)
    assert (unknown + nothing).nano is None


def test_the_interval_holds_the_truth() -> None:
    """Over 300 samples of a skewed population, about 95 % of the intervals hold what all of it would have cost."""
    dice = random.Random(5)
    population = [Sampled(MAY, "m", round(400 * dice.lognormvariate(0, 0.5))) for _ in range(3000)]
    truth = sum(each.input_tokens + 10 for each in population)
    held = 0
    for _ in range(300):
        found = suppressed(3000, dice.sample(population, 100), ONE_TOKEN, TARIFFS)
        assert found.nano is not None
        assert found.half_nano is not None
        held += abs(found.nano - truth) <= found.half_nano
    assert 270 <= held <= 297
