"""Corrections of prices: calls and GPU-hours of days that are over, billed again at another price.

Nothing that was written is changed. What comes of a correction is the difference, as rows of the day on which it is
made; each names the day that it is about.
"""

from datetime import date, datetime

from msgspec import Struct

from gateway.core.errors import InvalidInput
from gateway.core.prices import Tariff, to_nano
from gateway.core.task import Price


class Correction(Struct, frozen=True, kw_only=True):
    """What a model should have cost on the days [start, end) of the billing timezone, per million tokens."""

    model: str
    start: date
    end: date
    input_per_million: str
    output_per_million: str
    reason: str

    def tariff(self) -> Tariff:
        """The one price of all these days. Raises InvalidInput where it is no money, or where there is no day."""
        _check(self)
        price = Price(
            start=date.min, input_per_million=self.input_per_million, output_per_million=self.output_per_million
        )
        try:
            return Tariff((price,))
        except ValueError as error:
            raise InvalidInput(f"That is no price: {error}.") from error


class HourCorrection(Struct, frozen=True, kw_only=True):
    """What an hour of all GPUs of a model should have cost on the days [start, end) of the billing timezone."""

    model: str
    start: date
    end: date
    per_hour: str
    reason: str

    def bill_nano(self) -> int:
        """The one bill of each of these hours. Raises InvalidInput where it is no money, or where there is no day."""
        _check(self)
        try:
            return to_nano(self.per_hour)
        except ValueError as error:
            raise InvalidInput(f"That is no price: {error}.") from error


def _check(correction: Correction | HourCorrection) -> None:
    if correction.start >= correction.end:
        raise InvalidInput("The interval has no day: the end is the day after the last.")
    if not correction.reason.strip():
        raise InvalidInput("A correction needs its reason.")


class Adjustment(Struct, frozen=True, kw_only=True):
    """The difference for one payer, caller, owner and task: `cost_nano` more than was billed on the day `corrects`.

    It is charged on `day`. `position` counts the adjustments of the same teams, task, model and corrected day from 1.
    The price that should have held is per million tokens, or that of an hour of all the model's GPUs.
    """

    id: str
    day: date
    corrects: date
    payer_team: str
    caller_team: str
    owner_team: str
    task: str
    model: str
    cost_nano: int
    reason: str
    created_at: datetime
    position: int
    input_per_million_nano: int | None = None
    output_per_million_nano: int | None = None
    per_hour_nano: int | None = None
