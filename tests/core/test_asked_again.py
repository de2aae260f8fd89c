"""Asking again, at once and later: properties of Idempotency-Key and of runs that are shared, over two processes' ways
to one real store and one real ledger.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from engines import CLOCK, Echo, ask, asked, echoing, engine_on
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.adapters.redis import RedisStore
from gateway.adapters.sql.claims import SqlClaims
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import open_ledger
from gateway.core.cascade import Finding, StageFailed, Step
from gateway.core.engine import Engine
from gateway.core.errors import CascadeExhausted, Conflict
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter

TEAMS = st.sampled_from(["red", "blue"])
properties = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Moody(Echo):
    """An Echo that fails at `break`."""

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Always `rude`, where there is an answer."""
        found = await super().run(item, meter)
        if item["message"] == "break":
            raise StageFailed("stage_error")
        return found


@pytest.fixture
async def engines(database_url: str, stores: list[RedisStore]) -> AsyncIterator[list[Engine]]:
    """Two processes on one ledger, which also knows who has claimed which key."""
    ledgers, claims = [open_ledger(database_url) for _ in stores], Database(database_url)
    zone = ZoneInfo("UTC")
    yield [
        Engine(store, ledger, CLOCK, zone, permits=100, claims=SqlClaims(claims))
        for store, ledger in zip(stores, ledgers, strict=True)
    ]
    for ledger in ledgers:
        await ledger.aclose()
    await claims.aclose()


def without_actions(runner: Echo) -> LoadedTask:
    """A task that keeps nothing, and has no action for what nobody could answer."""
    task = echoing(runner, uuid4().hex)
    declared = replace(task.declared, actions={}, cache=None)
    return replace(task, name=f"manners-{uuid4().hex[:8]}", declared=declared, steps=(Step(declared.stage[0], runner),))


@properties
@given(rounds=st.lists(
    st.tuples(TEAMS, st.sampled_from(["k1", "k2"]), st.sampled_from(["hello", "bye", "break"]),
              st.lists(st.integers(0, 1), min_size=1, max_size=4)),
    min_size=1, max_size=8,
))  # fmt: skip
async def test_a_key_is_answered_once_whoever_asks_wherever(
    engines: list[Engine], rounds: list[tuple[str, str, str, list[int]]]
) -> None:
    """The first input that is answered under a team's key has it: whoever asks the same again, at once or later and at
    whichever process, gets that very run; another input is a conflict; an input that failed leaves the key free.
    """
    runner = Moody()
    task = without_actions(runner)
    held: dict[tuple[str, str], tuple[str, str]] = {}
    for team, key, message, places in rounds:
        before, wanted = runner.runs, held.get((team, key))
        requests = [replace(asked(task, team, message), idempotency_key=key) for _ in places]
        said = await asyncio.gather(
            *(engines[at].invoke(task, request) for at, request in zip(places, requests, strict=True)),
            return_exceptions=True,
        )
        if wanted is not None and wanted[0] != message:
            assert {type(each) for each in said} == {Conflict}
            assert runner.runs == before
        elif message == "break":
            assert {type(each) for each in said} == {CascadeExhausted}
        else:
            answers = [each for each in said if not isinstance(each, BaseException)]
            assert len(answers) == len(places)
            (run_id,) = {answer.inference.invocation.id for answer in answers}
            assert [answer.replayed for answer in answers].count(False) == (wanted is None)
            assert (runner.runs - before, wanted in (None, (message, run_id))) == (wanted is None, True)
            held[team, key] = (message, run_id)


@properties
@given(
    scope=st.sampled_from(["team", "task"]),
    requests=st.lists(st.tuples(TEAMS, st.sampled_from(["hello", "bye"]), st.integers(0, 1)), min_size=2, max_size=12),
)
async def test_what_is_asked_at_once_runs_once(
    stores: list[RedisStore], scope: Any, requests: list[tuple[str, str, int]]
) -> None:
    """Any crowd of requests at two processes: one run for each input and team (each input, with `scope = "task"`), the
    answer of its own input for everybody, and for each held item a review of its own.
    """
    runner, alike = Echo(), [engine_on(store) for store in stores]
    task = echoing(runner, uuid4().hex, scope)
    said = await asyncio.gather(*(ask(alike[at], task, team, message) for team, message, at in requests))
    inferences = [answer.inference for answer in said]
    different = {message if scope == "task" else (team, message) for team, message, _ in requests}
    assert runner.runs == len(different)
    assert [each.cache for each in inferences].count("miss") == len(different)
    for (team, message, _), each in zip(requests, inferences, strict=True):
        output = each.decision.output or {}
        assert (output["message"], output["seen"] == team or scope == "task") == (message, True)
    assert len({each.review_id for each in inferences} - {None}) == len(requests)
