from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import BudgetExceeded, QuotaExceeded
from gateway.core.inference import Caller, Intent, Usage
from gateway.core.quotas import (
    MAX_LIMIT,
    Limit,
    Standing,
    at_the_door,
    for_model_call,
    limit_of,
    rate_headers,
    refusal,
    window_end,
)
from gateway.core.task import Quota

UTC_ZONE = ZoneInfo("UTC")
NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
CALLER = Caller(team="bookings", key_id="k1", scopes=frozenset())
# Half-hour and 45-minute offsets, clocks that change at midnight and by half an hour, a date that never was.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
]


def intent(usage: Usage) -> Intent:
    return Intent(
        id="i",
        inference_id="f",
        attempt_id="a",
        task="triage",
        caller_team="bookings",
        owner_team="safety",
        payer_team="bookings",
        key_id="k1",
        kind="invoke",
        model="m",
        replica="r",
        estimate=usage,
        created_at=NOW,
    )


def test_money_is_counted_in_nano() -> None:
    """A cost limit is a decimal text and becomes an integer of nano-dollars."""
    quota = Quota(resource="cost", limit="200.00", per="month", scope=("task",))
    assert limit_of(quota) == Limit("cost", 200_000_000_000, "month", ("task",))


@pytest.mark.parametrize(
    ("quota", "says"),
    [
        (Quota(resource="cost", limit=200, per="month", scope=("task",)), "decimal in quotes"),
        (Quota(resource="tokens", limit="200", per="day", scope=("task",)), "integer"),
        (Quota(resource="requests", limit=-1, per="day", scope=("task",)), "negative"),
        (Quota(resource="tokens", limit=MAX_LIMIT, per="day", scope=("task",)), "counted exactly"),
        (Quota(resource="requests", limit=1, per=None, scope=("task",)), "`per`"),
        (Quota(resource="concurrency", limit=1, per="minute", scope=("task",)), "`per`"),
        (Quota(resource="requests", limit=1, per="day", scope=()), "`scope`"),
    ],
)
def test_a_wrong_quota_is_refused_with_what_is_wrong(quota: Quota, says: str) -> None:
    """No quota is guessed at: what cannot be counted is an error that names its cause."""
    with pytest.raises(ValueError, match=says):
        limit_of(quota)


def test_the_door_takes_requests_and_permits_and_only_looks_at_tokens() -> None:
    """At the door a request counts once, tokens are looked at for the headers, and cost is left to model calls."""
    limits = [
        Limit("requests", 10, "minute", ("task", "caller_team")),
        Limit("concurrency", 4, None, ("key",)),
        Limit("tokens", 1000, "day", ("caller_team",)),
        Limit("cost", 1000, "month", ("task",)),
    ]
    charges = at_the_door(limits, "triage", CALLER, NOW, UTC_ZONE)
    assert [(charge.resource, charge.mode, charge.amount, charge.scope) for charge in charges] == [
        ("requests", "gcra", 1, "caller_team=bookings,task=triage"),
        ("concurrency", "held", 1, "key=k1"),
        ("tokens", "window", 0, "caller_team=bookings"),
    ]


def test_a_model_call_takes_its_estimate() -> None:
    """Tokens are input and output together, cost is in nano-dollars."""
    limits = [
        Limit("requests", 10, "minute", ("task",)),
        Limit("tokens", 1000, "minute", ("task",)),
        Limit("cost", 9000, "month", ("task",)),
    ]
    charges = for_model_call(limits, intent(Usage(30, 12, 700)), UTC_ZONE)
    assert [(charge.resource, charge.mode, charge.amount) for charge in charges] == [
        ("tokens", "gcra", 42),
        ("cost", "window", 700),
    ]


def test_two_quotas_on_one_counter_are_charged_once() -> None:
    """Where a task and a team limit the same counter, the smaller limit holds and nothing is counted twice."""
    limits = [Limit("tokens", 1000, "day", ("caller_team",)), Limit("tokens", 600, "day", ("caller_team",))]
    charges = for_model_call(limits, intent(Usage(30, 12, 0)), UTC_ZONE)
    assert [(charge.limit, charge.amount) for charge in charges] == [(600, 42)]


def test_an_edited_limit_keeps_its_counter() -> None:
    """The key of a counter does not contain the limit: an edit keeps what was used."""
    before, after = (at_the_door([Limit("requests", n, "day", ("task",))], "t", CALLER, NOW, UTC_ZONE) for n in (5, 9))
    assert before[0].key == after[0].key


def test_every_window_has_a_counter_of_its_own() -> None:
    """Requests on two days, or in two zones whose days differ, meet two counters."""
    limits = [Limit("requests", 5, "day", ("task",))]
    keys = {
        at_the_door(limits, "t", CALLER, now, ZoneInfo(zone))[0].key
        for now in (NOW, NOW + timedelta(days=1))
        for zone in ("UTC", "America/New_York")
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("per", "zone", "now", "end"),
    [
        ("month", "Europe/Berlin", "2026-01-31T22:59:59+00:00", "2026-01-31T23:00:00+00:00"),
        ("month", "Europe/Berlin", "2026-01-31T23:00:00+00:00", "2026-02-28T23:00:00+00:00"),
        ("month", "Europe/Berlin", "2026-03-15T00:00:00+00:00", "2026-03-31T22:00:00+00:00"),
        ("month", "UTC", "2028-02-29T12:00:00+00:00", "2028-03-01T00:00:00+00:00"),
        ("month", "America/New_York", "2026-12-31T23:30:00+00:00", "2027-01-01T05:00:00+00:00"),
        # 23 and 25 hours long
        ("day", "America/New_York", "2026-03-08T05:00:00+00:00", "2026-03-09T04:00:00+00:00"),
        ("day", "America/New_York", "2026-11-01T04:00:00+00:00", "2026-11-02T05:00:00+00:00"),
        # midnight does not exist, midnight exists twice, the day does not exist
        ("day", "Africa/Cairo", "2026-04-23T12:00:00+00:00", "2026-04-23T22:00:00+00:00"),
        ("day", "America/Havana", "2026-10-31T12:00:00+00:00", "2026-11-01T04:00:00+00:00"),
        ("day", "Pacific/Apia", "2011-12-30T09:59:59+00:00", "2011-12-30T10:00:00+00:00"),
        ("hour", "Asia/Kathmandu", "2026-05-01T00:10:00+00:00", "2026-05-01T00:15:00+00:00"),
        # the hour that comes twice is two hours
        ("hour", "America/New_York", "2026-11-01T05:30:00+00:00", "2026-11-01T06:00:00+00:00"),
        ("hour", "America/New_York", "2026-11-01T06:30:00+00:00", "2026-11-01T07:00:00+00:00"),
    ],
)
def test_windows_follow_the_calendar_of_the_zone(per: str, zone: str, now: str, end: str) -> None:
    """Windows end on the wall clock of the billing timezone, also where the clocks change."""
    found = window_end(per, datetime.fromisoformat(now), ZoneInfo(zone))  # type: ignore[arg-type]
    assert found.astimezone(UTC) == datetime.fromisoformat(end)


@given(
    now=st.datetimes(datetime(2005, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
    per=st.sampled_from(["hour", "day", "month"]),
    zone=st.sampled_from(ZONES).map(ZoneInfo),
)
def test_windows_are_half_open_and_leave_no_gap(now: datetime, per: str, zone: ZoneInfo) -> None:
    """A window ends after every instant in it, its last instant belongs to it, and its end to the next one."""
    end = window_end(per, now, zone).astimezone(UTC)  # type: ignore[arg-type]
    last = max(now, end - timedelta(microseconds=1))
    assert now < end
    assert window_end(per, last, zone).astimezone(UTC) == end  # type: ignore[arg-type]
    assert window_end(per, end, zone).astimezone(UTC) > end  # type: ignore[arg-type]


def test_the_headers_show_what_runs_out_first() -> None:
    """Of several quotas on a resource the headers show the one with the least left; permits and cost are not shown."""
    limits = [
        Limit("requests", 100, "minute", ("task",)),
        Limit("requests", 50, "day", ("key",)),
        Limit("concurrency", 3, None, ("key",)),
        Limit("tokens", 900, "day", ("task",)),
    ]
    charges = at_the_door(limits, "t", CALLER, NOW, UTC_ZONE)
    standings = [
        Standing(charge, charge.limit, used, 7.5) for charge, used in zip(charges, (10, 45, 1, 1000), strict=True)
    ]
    shown = [(rate.resource, rate.limit, rate.remaining, rate.reset_s) for rate in rate_headers(standings)]
    assert shown == [("requests", 50, 5, 7.5), ("tokens", 900, 0, 7.5)]


@pytest.mark.parametrize("error", [QuotaExceeded, BudgetExceeded])
def test_a_refusal_says_which_quota_and_for_how_long(error: type[QuotaExceeded] | type[BudgetExceeded]) -> None:
    """Scope, resource, limit, remaining, reset and window are members of the error, for people and for clients."""
    (charge,) = at_the_door([Limit("requests", 10, "minute", ("task",))], "t", CALLER, NOW, UTC_ZONE)
    refused = refusal(error, Standing(charge, 10, 10, 60.0), 6.0)
    assert isinstance(refused, error)
    assert refused.retry_after_s == 6.0
    assert refused.extra == {
        "scope": "task=t",
        "resource": "requests",
        "limit": 10,
        "remaining": 0,
        "reset_s": 60.0,
        "per": "minute",
    }
    assert refused.detail == "The quota of 10 requests per minute for task=t has 0 left; 1 needed."
