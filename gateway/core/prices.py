"""Price book: model → price from a date on → cost in integer nano-dollars, rounded up once per call and direction."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from operator import itemgetter

from msgspec import Struct

from gateway.core.inference import Usage
from gateway.core.task import Price

NANO = 1_000_000_000
_MILLION = 1_000_000


def to_nano(amount: str) -> int:
    """ "200.00" → 200_000_000_000. Raises ValueError for anything but a finite, non-negative decimal of ≤ 9 places."""
    try:
        nano = Decimal(amount) * NANO
        if nano >= 0 and nano == (whole := int(nano)):
            return whole
    except (InvalidOperation, OverflowError, ValueError):
        pass
    raise ValueError(f'{amount!r} is not an amount of money: write a decimal such as "200.00"')


def from_nano(nano: int) -> str:
    """200_000_000_000 → "200.000000000": exact, always nine places."""
    sign, nano = ("-" if nano < 0 else ""), abs(nano)
    return f"{sign}{nano // NANO}.{nano % NANO:09d}"


class PerToken(Struct, frozen=True):
    """Nano-dollars per million tokens."""

    input_nano: int
    output_nano: int

    def usage(self, input_tokens: int, output_tokens: int) -> Usage:
        """Rounded up to the next nano-dollar for each direction: never below the true amount."""
        cost = _ceil_div(input_tokens * self.input_nano, _MILLION) + _ceil_div(
            output_tokens * self.output_nano, _MILLION
        )
        return Usage(input_tokens, output_tokens, cost)


class GpuHour(Struct, frozen=True):
    """What one hour of all the model's GPUs costs, called or not, and the tokens that they can do in it."""

    bill_nano: int
    capacity_tokens: int

    def usage(self, input_tokens: int, output_tokens: int) -> Usage:
        """Cost 0 until the hour is shared out. Provisionally the share of a full hour, which is the most it can be."""
        share = _ceil_div((input_tokens + output_tokens) * self.bill_nano, self.capacity_tokens)
        return Usage(input_tokens, output_tokens, 0, share)


class Tariff:
    """The prices of one model over time. Each call is priced for itself, so the sum over calls is exact."""

    def __init__(self, prices: Sequence[Price]) -> None:
        """Raises ValueError for an amount that is no money, a price of neither kind or of both, or two from one day."""
        self._steps = sorted(((price.start, _rate(price)) for price in prices), key=itemgetter(0), reverse=True)
        if len({start for start, _ in self._steps}) != len(self._steps):
            raise ValueError("two prices start on the same day")

    def cost_nano(self, input_tokens: int, output_tokens: int, at: datetime) -> int:
        """Cost of one call made at `at` (UTC), or its provisional cost. Raises LookupError before the first price."""
        usage = self.usage(input_tokens, output_tokens, at)
        return usage.cost_nano + usage.provisional_nano

    def usage(self, input_tokens: int, output_tokens: int, at: datetime) -> Usage:
        """Tokens and their cost. Raises LookupError before the first price."""
        if (rate := self._rate_at(at)) is None:
            raise LookupError(f"no price is valid on {at.date()}")
        return rate.usage(input_tokens, output_tokens)

    def gpu_hour(self, at: datetime) -> GpuHour | None:
        """The price of the hour that begins at `at`; None where the model is not paid by the hour then."""
        rate = self._rate_at(at)
        return rate if isinstance(rate, GpuHour) else None

    def gpu_since(self) -> date | None:
        """The first day on which the model was paid by the hour."""
        return min((start for start, rate in self._steps if isinstance(rate, GpuHour)), default=None)

    def _rate_at(self, at: datetime) -> PerToken | GpuHour | None:
        return next((rate for start, rate in self._steps if start <= at.date()), None)


def _rate(price: Price) -> PerToken | GpuHour:
    """Raises ValueError."""
    per_token = (price.input_per_million, price.output_per_million)
    per_hour = (price.per_gpu_hour, price.tokens_per_gpu_hour)
    if None not in per_token and per_hour == (None, None):
        return PerToken(*(to_nano(str(amount)) for amount in per_token))
    if price.per_gpu_hour is not None and price.tokens_per_gpu_hour is not None and per_token == (None, None):
        return GpuHour(price.gpus * to_nano(price.per_gpu_hour), price.gpus * price.tokens_per_gpu_hour)
    raise ValueError(
        "a price has input_per_million and output_per_million, or per_gpu_hour and tokens_per_gpu_hour; not both"
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
