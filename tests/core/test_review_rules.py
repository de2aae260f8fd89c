"""The rules of reviews, as pure functions."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core import review_rules
from gateway.core.errors import Conflict, Forbidden
from gateway.core.review_checks import appeal, ask_again, ask_gold, followed, looked_at_twice, mark_gold
from gateway.core.review_rules import agreement
from gateway.core.reviews import (
    CLOCK,
    HEAD_START,
    LEASE,
    SKIPS,
    Change,
    Event,
    Item,
    Reviewer,
    Ruling,
    rank_of,
    state_of,
)
from gateway.core.task import Review

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
SLA = timedelta(hours=1)
ANN, BEN, LEAD = (Reviewer("trust", key * 16, lead) for key, lead in (("a", False), ("b", False), ("c", True)))
BLOCK = Ruling(outcome="block", policies=("spam_scam",))
DELIVER = Ruling(outcome="deliver")
UNDO = timedelta(seconds=30)


def item(**changed: Any) -> Item:
    """An open question about a message that the machine would block."""
    values: dict[str, Any] = {
        "id": "r1", "kind": "held", "root_id": "r1", "task": "moderation", "caller_team": "shop", "owner_team": "trust",
        "fingerprint": "f" * 16, "severity": 2, "score": 0.9, "policies": ("spam_scam",), "recommended": "block",
        "created_at": T0, "due_at": T0 + SLA, "on_expiry": "block", "rank_at": T0 + SLA,
    }  # fmt: skip
    return Item(**{**values, **changed})


def leased(by: Reviewer = ANN, **changed: Any) -> Item:
    """The same, leased with the token `t`."""
    return review_rules.lease(item(**changed), by, T0, "t").item


def decided(by: Reviewer = ANN, ruling: Ruling = BLOCK, **changed: Any) -> Item:
    """The same, decided."""
    return review_rules.decide(leased(by, **changed), by, T0, "t", ruling, UNDO).item


def test_a_life_is_the_sum_of_its_events() -> None:
    """Each event follows from the one before; the state is what they lead to, and a gap is found."""
    now, events, each = T0, [], item()
    steps: list[Callable[[Item], Change]] = [
        lambda i: review_rules.lease(i, ANN, now, "1"),
        lambda i: review_rules.skip(i, ANN, now, "1", "unclear"),
        lambda i: review_rules.lease(i, BEN, now, "2"),
        lambda i: review_rules.decide(i, BEN, now, "2", BLOCK, UNDO),
        lambda i: review_rules.undo(i, BEN, now),
    ]
    for step in steps:
        change = step(each)
        each = change.item
        events.append(change.event)
    assert [e.event for e in events] == ["leased", "skipped", "leased", "decided", "undone"]
    assert state_of(events) == each.state == "open"
    assert {e.fingerprint for e in events} == {"f" * 16}
    with pytest.raises(ValueError, match="does not follow"):
        state_of(events[1:])


@pytest.mark.parametrize(
    ("token", "by", "after"), [("stale", ANN, timedelta()), ("t", BEN, timedelta()), ("t", ANN, LEASE)]
)
def test_only_a_living_lease_decides(token: str, by: Reviewer, after: timedelta) -> None:
    """Another token, another reviewer, or the same after ten minutes: 409, whatever they want to do."""
    now = T0 + after
    for late in (
        lambda: review_rules.decide(leased(), by, now, token, BLOCK, UNDO),
        lambda: review_rules.renew(leased(), by, now, token),
        lambda: review_rules.release(leased(), by, now, token),
        lambda: review_rules.skip(leased(), by, now, token, "unclear"),
    ):
        with pytest.raises(Conflict):
            late()


def test_nobody_takes_what_is_leased_until_the_lease_ends() -> None:
    """One item has one reviewer; when the ten minutes are over the next may have it."""
    with pytest.raises(Conflict):
        review_rules.lease(leased(), BEN, T0 + LEASE - timedelta(seconds=1), "u")
    assert review_rules.takeable(leased(), BEN, T0 + LEASE)


def test_another_teams_item_is_refused() -> None:
    """Who does not own the task judges none of its items."""
    with pytest.raises(Forbidden):
        review_rules.lease(item(), Reviewer("other", "d" * 16, True), T0, "t")


def test_what_is_skipped_too_often_is_a_leads() -> None:
    """Whoever skipped an item does not get it again; after the last skip only a lead does."""
    each = item()
    for n in range(SKIPS):
        by = Reviewer("trust", str(n) * 16)
        each = review_rules.skip(review_rules.lease(each, by, T0, "t").item, by, T0, "t", "unclear").item
        assert not review_rules.takeable(each, by, T0)
    assert each.state == "escalated"
    assert not review_rules.takeable(each, ANN, T0)
    assert review_rules.takeable(each, LEAD, T0, escalated=True)
    back = review_rules.release(review_rules.lease(each, LEAD, T0, "u").item, LEAD, T0, "u").item
    assert back.state == "escalated"


@pytest.mark.parametrize(
    ("outcome", "policies", "agrees"),
    [
        ("block", ("spam_scam",), "right"),
        ("block", ("abuse",), "wrong_policy"),
        ("deliver", (), "wrong_action"),
    ],
)
def test_a_right_action_for_a_wrong_policy_is_told_apart(outcome: Any, policies: tuple[str, ...], agrees: str) -> None:
    """What the machine said is compared with the action first, then with the policies."""
    assert agreement(item(), outcome, policies) == agrees
    assert agreement(item(recommended=None), outcome, policies) == "unguided"


def test_a_decision_can_be_undone_within_its_window_by_who_made_it() -> None:
    """Another reviewer may not; a lead may; afterwards nobody may. The item returns to the queue."""
    done = decided()
    with pytest.raises(Forbidden):
        review_rules.undo(done, BEN, T0)
    with pytest.raises(Conflict):
        review_rules.undo(done, ANN, T0 + UNDO)
    for by in (ANN, LEAD):
        again = review_rules.undo(done, by, T0)
        assert (again.item.state, again.item.outcome, again.untell) == ("open", None, True)
        assert review_rules.takeable(again.item, ANN, T0)
    second = review_rules.decide(review_rules.lease(again.item, BEN, T0, "u").item, BEN, T0, "u", DELIVER, UNDO)
    assert second.item.decision is not None
    assert second.item.decision.revision == 2


@pytest.mark.parametrize("on_expiry", ["block", "deliver"])
def test_a_deadline_does_what_the_task_declared(on_expiry: Any) -> None:
    """Not before its time, not while somebody holds the lease, and never again."""
    each = item(on_expiry=on_expiry)
    with pytest.raises(Conflict):
        review_rules.expire(each, T0)
    change = review_rules.expire(each, T0 + SLA)
    assert (change.item.state, change.item.outcome, change.tell) == ("expired", on_expiry, True)
    assert change.event.actor == CLOCK
    for settled in (change.item, decided(), leased(on_expiry=on_expiry), item(on_expiry=None)):
        with pytest.raises(Conflict):
            review_rules.expire(settled, T0 + SLA)
    with pytest.raises(Conflict):
        review_rules.decide(change.item, ANN, T0 + SLA, "t", BLOCK, UNDO)


def test_a_deadline_may_hand_over_to_a_lead() -> None:
    """An escalated item has no outcome, and no clock touches it again."""
    up = review_rules.expire(item(on_expiry="escalate"), T0 + SLA)
    assert (up.item.state, up.item.outcome, up.tell) == ("escalated", None, False)
    with pytest.raises(Conflict):
        review_rules.expire(up.item, T0 + 2 * SLA)


def test_a_lease_is_not_renewed_beyond_the_deadline() -> None:
    """Who holds an item past its deadline decides before the lease ends, or not at all."""
    with pytest.raises(Conflict):
        review_rules.renew(review_rules.lease(item(), ANN, T0 + SLA, "t").item, ANN, T0 + SLA, "t")


def test_likeness_only_ever_holds() -> None:
    """What reads like a blocked item is kept from the clock; a delivery tells nothing about what reads like it."""
    kept = review_rules.hold(item(on_expiry="deliver"), T0, "r0").item
    assert (kept.on_expiry, kept.state, kept.outcome) == ("escalate", "open", None)
    assert review_rules.decide(leased(), ANN, T0, "t", BLOCK, UNDO).hold_near
    assert not review_rules.decide(leased(), ANN, T0, "t", DELIVER, UNDO).hold_near


def test_grave_blocks_and_a_share_of_the_rest_are_decided_twice() -> None:
    """The share is met, the choice is the same each time, and severity decides where it is declared."""
    some = Review(second=0.25)
    chosen = [looked_at_twice(decided(id=f"r{n}", root_id=f"r{n}"), some) for n in range(2000)]
    assert 0.2 < sum(chosen) / len(chosen) < 0.3
    grave = Review(second_severity=3)
    assert looked_at_twice(decided(severity=3), grave)
    assert not looked_at_twice(decided(severity=2), grave)
    assert not looked_at_twice(decided(severity=3, ruling=DELIVER), grave)


def judged(kind: Any, ruling: Ruling, root: Item) -> Change:
    """What BEN's or the lead's judgement of a question about `root` does to the root."""
    by = BEN if kind == "second" else LEAD
    child = ask_again(root, kind, "r2", T0)
    change = review_rules.decide(review_rules.lease(child, by, T0, "t").item, by, T0, "t", ruling, UNDO)
    rule = followed(change, Review(), lambda: "r3").on_root
    assert rule is not None
    assert not change.tell
    return rule(root)


def test_two_who_differ_are_settled_by_a_third() -> None:
    """A second opinion never changes an outcome; where it differs a third is asked, who may be neither."""
    root = decided()
    assert judged("second", BLOCK, root).event.event == "upheld"
    disputed = judged("second", DELIVER, root)
    assert (disputed.item.outcome, disputed.event.event) == ("block", "disputed")
    (third,) = disputed.ask
    assert third.kind == "third"
    assert not any(review_rules.takeable(third, by, T0) for by in (ANN, BEN))
    assert review_rules.takeable(third, LEAD, T0)
    assert judged("third", BLOCK, root).event.event == "upheld"
    overturned = judged("third", DELIVER, root)
    assert (overturned.item.outcome, overturned.event.event, overturned.tell) == ("deliver", "overturned", True)
    assert overturned.item.decision is not None
    assert overturned.item.decision.revision == 2


def test_an_appeal_is_judged_by_somebody_else_once() -> None:
    """Not before the decision stands, not by who made it, and not a second time."""
    root, after = decided(), T0 + UNDO
    with pytest.raises(Conflict):
        appeal(root, ANN.actor, T0, "why?", "r2")
    change = appeal(root, ANN.actor, after, "why?", "r2")
    (question,) = change.ask
    with pytest.raises(Forbidden):
        review_rules.lease(question, ANN, after, "t")
    with pytest.raises(Conflict):
        appeal(change.item, ANN.actor, after, "why?", "r3")
    with pytest.raises(Conflict):
        appeal(item(), ANN.actor, after, "why?", "r3")


def test_a_known_item_is_asked_of_each_reviewer_once() -> None:
    """It looks like any other, and nothing hangs on the answer."""
    root = mark_gold(decided(), LEAD.actor, T0).item
    change = ask_gold(root, BEN.actor, BEN.key_id, T0, "r2")
    assert BEN.key_id in change.item.barred
    (question,) = change.ask
    answer = review_rules.decide(review_rules.lease(question, BEN, T0, "t").item, BEN, T0, "t", DELIVER, UNDO)
    assert followed(answer, Review(second=1.0), lambda: "r3") == answer
    assert not answer.tell


@given(
    age=st.floats(0, 1e6), other_age=st.floats(0, 1e6), risk=st.floats(0, 1), other=st.floats(0, 1)
)  # fmt: skip
def test_nothing_starves(age: float, other_age: float, risk: float, other: float) -> None:
    """An item is overtaken by nothing that came more than HEAD_START SLAs after it, however grave that is."""
    first, second = T0 + timedelta(seconds=age), T0 + timedelta(seconds=other_age)
    if second - first > HEAD_START * SLA + timedelta(seconds=1):
        assert rank_of(first, first + SLA, risk) < rank_of(second, second + SLA, other)


def test_the_graver_and_likelier_goes_first() -> None:
    """At equal age the order is that of severity × score; at equal risk that of the deadline."""
    ranks = [rank_of(T0, T0 + SLA, risk) for risk in (1.0, 0.6, 0.0)]
    assert ranks == sorted(ranks)
    assert rank_of(T0, T0 + SLA, 0.5) < rank_of(T0, T0 + 2 * SLA, 0.0)


def test_events_are_values() -> None:
    """A change writes what it says and nothing of the lease's token."""
    change = review_rules.lease(item(), ANN, T0, "secret-token")
    assert isinstance(change.event, Event)
    assert "secret-token" not in repr(change.event)
    assert replace(change.item, lease_token=None) != item()
