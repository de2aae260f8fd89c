"""What finance reads: sums by day, grouped as asked, and rows with the column names of FOCUS 1.2.

FOCUS is the FinOps Foundation's open billing format (https://focus.finops.org). Columns of our own begin with `x_`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

from msgspec import Struct, structs

from gateway.core.prices import NANO

FOCUS_VERSION = "1.2"
# Beside the kinds of inference there are charges that are no calls: money given back or asked for after the fact, hours
# of GPUs shared out among those who used them, and what of these hours nobody used.
ADJUSTMENT = "adjustment"
GPU_HOURS = "gpu-hours"
IDLE_GPU_HOURS = "gpu-hours-idle"
CHARGES = (ADJUSTMENT, GPU_HOURS, IDLE_GPU_HOURS)

Part = Literal["team", "task", "model", "day", "stage", "kind"]


class UsageDay(Struct, frozen=True, kw_only=True):
    """One day in the billing timezone, of one payer, caller, owner, task, kind, stage and model.

    `model` is empty in the row that counts the inferences themselves (`inferences`, `cached`); all else is in the rows
    of models, so that every column may be summed. `cost_nano` includes `unsettled_nano`, which is at the estimate.
    `corrects` is the day that an adjustment is about, as 2026-10-25; empty in every other row.
    """

    day: date
    payer_team: str
    caller_team: str
    owner_team: str
    task: str
    kind: str
    stage: str = ""
    model: str = ""
    inferences: int = 0
    cached: int = 0
    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    unsettled_nano: int = 0
    corrects: str = ""


SUMS = ("inferences", "cached", "model_calls", "input_tokens", "output_tokens", "cost_nano", "unsettled_nano")

_PARTS: Mapping[Part, Callable[[UsageDay], str]] = {
    "team": lambda row: row.payer_team,
    "task": lambda row: row.task,
    "model": lambda row: row.model,
    "day": lambda row: row.day.isoformat(),
    "stage": lambda row: row.stage,
    "kind": lambda row: row.kind,
}


class Line(Struct, frozen=True):
    """The sums of one group; `names` are its values of the parts it was grouped by."""

    names: tuple[str, ...]
    sums: Mapping[str, int]


def grouped(rows: Iterable[UsageDay], by: Sequence[Part]) -> list[Line]:
    """One line per group, sorted by its names; the lines' sums are the rows' sums."""
    groups: dict[tuple[str, ...], dict[str, int]] = {}
    for row in rows:
        sums = groups.setdefault(tuple(_PARTS[part](row) for part in by), dict.fromkeys(SUMS, 0))
        for name in SUMS:
            sums[name] += getattr(row, name)
    return [Line(names, groups[names]) for names in sorted(groups)]


def total(rows: Iterable[UsageDay]) -> Mapping[str, int]:
    """The sums over all rows."""
    lines = grouped(rows, ())
    return lines[0].sums if lines else dict.fromkeys(SUMS, 0)


def day_start(day: date, zone: ZoneInfo) -> datetime:
    """The instant at which a day begins in the billing timezone."""
    return datetime.combine(day, time(), zone)


def month_after(month: date) -> date:
    """The first day of the next month."""
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


def focus_rows(rows: Iterable[UsageDay], currency: str, zone: ZoneInfo) -> list[dict[str, Any]]:
    """One FOCUS row per usage day, in a stable order. Costs are exact decimals, instants are RFC 3339 in UTC."""
    return [_focus(row, currency, zone) for row in sorted(rows, key=structs.astuple)]


def _focus(row: UsageDay, currency: str, zone: ZoneInfo) -> dict[str, Any]:
    cost = Decimal(row.cost_nano) / NANO
    tokens = row.input_tokens + row.output_tokens
    month = row.day.replace(day=1)
    corrects = row.kind == ADJUSTMENT
    # A correction is billed with the open month, for a day of another one.
    charged = date.fromisoformat(row.corrects) if row.corrects else row.day
    return {
        "BilledCost": cost,
        "BillingAccountId": row.payer_team,
        "BillingAccountName": row.payer_team,
        "BillingCurrency": currency,
        "BillingPeriodStart": _instant(month, zone),
        "BillingPeriodEnd": _instant(month_after(month), zone),
        "ChargeCategory": "Adjustment" if corrects else "Usage",
        "ChargeClass": "Correction" if charged < month else None,
        "ChargeDescription": _description(row),
        "ChargeFrequency": "One-Time" if corrects else "Usage-Based",
        "ChargePeriodStart": _instant(charged, zone),
        "ChargePeriodEnd": _instant(charged + timedelta(days=1), zone),
        "ConsumedQuantity": None if corrects else tokens,
        "ConsumedUnit": None if corrects else "Tokens",
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": "taskgate",
        "ListCost": cost,
        "PricingQuantity": None if corrects else tokens,
        "PricingUnit": None if corrects else "Tokens",
        "ProviderName": "taskgate",
        "PublisherName": "taskgate",
        "ResourceId": row.model or None,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": row.task or "idle GPU-hours",
        "SkuId": row.model or None,
        "SubAccountId": row.caller_team,
        "x_CallerTeam": row.caller_team,
        "x_OwnerTeam": row.owner_team,
        "x_Task": row.task,
        "x_Stage": row.stage,
        "x_Kind": row.kind,
        "x_Model": row.model,
        "x_Inferences": row.inferences,
        "x_CachedInferences": row.cached,
        "x_ModelCalls": row.model_calls,
        "x_InputTokens": row.input_tokens,
        "x_OutputTokens": row.output_tokens,
        "x_UnsettledCost": Decimal(row.unsettled_nano) / NANO,
    }


def _description(row: UsageDay) -> str:
    what = row.model or "answers without a model"
    used_by = f"task {row.task}" if row.task else "GPU-hours that nobody used"
    return f"{what}, {used_by}: price of {row.corrects}" if row.corrects else f"{what}, {used_by}"


def _instant(day: date, zone: ZoneInfo) -> str:
    return day_start(day, zone).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
