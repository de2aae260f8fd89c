"""Tokens and cost of a set of ledger rows."""

from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, astuple
from sqlalchemy import BigInteger, ColumnElement, Select, cast, func, select


class Sums(Struct, frozen=True):
    """Over `rows` rows."""

    rows: int
    input_tokens: int
    output_tokens: int
    cost_nano: int

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


NO_SUMS = Sums(0, 0, 0, 0)


def sums_of(table: Any) -> Select[Any]:
    """The query whose one row is the Sums of a table with usage."""
    columns: list[Any] = [func.count()]
    columns += [func.coalesce(total(table.c[name]), 0) for name in ("input_tokens", "output_tokens", "cost_nano")]
    return select(*columns).select_from(table)


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """Postgres sums BIGINT to NUMERIC; the total of nano-dollars fits BIGINT up to nine billion dollars."""
    return cast(func.sum(column), BigInteger)
