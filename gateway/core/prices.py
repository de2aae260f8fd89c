"""Price book: model → price from a date on → cost in integer nano-dollars, rounded up once per call and direction."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation

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


class Tariff:
    """The prices of one model over time.

    Prices are kept as nano-dollars per million tokens; the cost of a call is rounded up to the next nano-dollar for
    each direction, so the sum over calls is exact by construction and never below the true amount.
    """

    def __init__(self, prices: Sequence[Price]) -> None:
        """Raises ValueError for an amount that is no money, or two prices from the same day."""
        self._steps = sorted(
            ((p.start, to_nano(p.input_per_million), to_nano(p.output_per_million)) for p in prices), reverse=True
        )
        if len({start for start, _, _ in self._steps}) != len(self._steps):
            raise ValueError("two prices start on the same day")

    def cost_nano(self, input_tokens: int, output_tokens: int, at: datetime) -> int:
        """Cost of one call made at `at` (UTC). Raises LookupError where no price has begun yet."""
        for start, per_input, per_output in self._steps:
            if start <= at.date():
                return _ceil_div(input_tokens * per_input, _MILLION) + _ceil_div(output_tokens * per_output, _MILLION)
        raise LookupError(f"no price is valid on {at.date()}")

    def usage(self, input_tokens: int, output_tokens: int, at: datetime) -> Usage:
        """Tokens and their cost."""
        return Usage(input_tokens, output_tokens, self.cost_nano(input_tokens, output_tokens, at))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
