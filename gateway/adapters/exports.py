"""FOCUS rows to CSV and Parquet. The same rows give the same bytes of CSV, on every machine and day."""

import csv
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.core.reports import FOCUS_VERSION

COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "x_UnsettledCost")
COUNTS = (
    "ConsumedQuantity",
    "PricingQuantity",
    "x_Inferences",
    "x_CachedInferences",
    "x_ModelCalls",
    "x_InputTokens",
    "x_OutputTokens",
)


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """UTF-8 with a header; money has nine decimals, what is unknown is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row[column]) for column in columns] for row in rows)
    return text.getvalue().encode()


def billed_nano(content: bytes) -> int:
    """The cost of an export that `to_csv` made, in nano-units."""
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return int(sum((Decimal(row["BilledCost"]) for row in rows), Decimal()).scaleb(9))


def write_parquet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], file: Path) -> None:
    """One file; money is decimal(38, 9), and the FOCUS version stands in the metadata. Needs pyarrow."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = pa.schema([(name, _type(name, pa)) for name in columns], {"focus_version": FOCUS_VERSION})
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema), file)


def _type(column: str, pa: Any) -> Any:
    if column in COSTS:
        return pa.decimal128(38, 9)
    return pa.int64() if column in COUNTS else pa.string()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9f}" if isinstance(value, Decimal) else str(value)


def write_labels(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Labelled rows as one file, for `gateway lab`. Needs pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
