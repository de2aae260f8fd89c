"""Suppressed prompts, counted after the answer, and the traffic that they speak for."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs
from stories import TRUTH, inference, intent, invocation

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.savings import SqlPromptSamples, SqlTraffic
from gateway.core.cascade import Finding, Step
from gateway.core.inference import Answer, Inference
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter
from gateway.core.prompt_samples import PromptSampler
from gateway.core.savings import Outputs, Sampled
from gateway.core.task import ChainStage

ZONE = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 10, 25, 12, tzinfo=UTC)
DAY = (date(2026, 10, 25), date(2026, 10, 26))


class Words:
    """A stage whose prompt has one token for each word of the message; `None` where it cannot know."""

    def __init__(self, knows: bool = True) -> None:
        self._knows = knows

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Not asked here."""
        return Finding()

    def prompt_tokens(self, item: Mapping[str, Any]) -> int | None:
        return len(item["message"].split()) if self._knows else None


@pytest.fixture
def samples(database: Database) -> SqlPromptSamples:
    """The samples of the database under test."""
    return SqlPromptSamples(database)


def task(runner: Words) -> LoadedTask:
    """A task with one chain stage; the sampler looks at nothing else."""
    step = Step(ChainStage(name="llm", prompt="p", model="moderation-llm"), runner)
    values: dict[str, Any] = dict.fromkeys(LoadedTask.__struct_fields__)
    return LoadedTask(**{**values, "name": "message-moderation", "steps": (step,)})


def story(**changed: Any) -> Inference:
    """A suppressed inference of that noon."""
    return inference(invocation(received_at=NOON), **changed)


async def test_only_suppressed_traffic_is_sampled(
    ledger: SqlLedger, database: Database, samples: SqlPromptSamples
) -> None:
    """Cheap stages' and the cache's answers are; calls, audits, replayed answers and unknowable prompts are not."""
    called = invocation(received_at=NOON)
    told = [
        story(),
        story(cache="hit"),
        inference(called, intent(called, created_at=NOON)),
        inference(invocation(received_at=NOON, kind="audit")),
    ]
    sampler = PromptSampler(samples, 1.0)
    for each in told:
        await ledger.record(each)
        sampler.answered(task(Words()), Answer(each))
    sampler.answered(task(Words()), Answer(story(), replayed=True))
    sampler.answered(task(Words(knows=False)), Answer(story()))
    await sampler.turn()
    await sampler.turn()
    traffic = await SqlTraffic(database, ZONE).of("message-moderation", *DAY)
    assert (traffic.inferences, traffic.cached, traffic.called, traffic.cheap, traffic.held) == (3, 1, 1, 1, 0)
    assert traffic.samples_cheap == traffic.samples_cached == [Sampled(NOON, "moderation-llm", 5)]
    assert traffic.called_nano == TRUTH.cost_nano
    assert traffic.outputs == Outputs(1, 1, 1)
    # The prefilter ran for each of the four.
    assert traffic.compute_ms == 4 * 0.75
    other = await SqlTraffic(database, ZONE).of("another", *DAY)
    assert (other.inferences, other.samples_cheap, other.outputs.mean) == (0, [], 0.0)


async def test_each_inference_is_as_likely_as_the_next(database: Database, samples: SqlPromptSamples) -> None:
    """By its id: about the share asked for, none at 0."""
    none, third = PromptSampler(samples, 0.0), PromptSampler(samples, 0.3)
    for _ in range(900):
        answer = Answer(story())
        none.answered(task(Words()), answer)
        third.answered(task(Words()), answer)
    await none.turn()
    assert (await SqlTraffic(database, ZONE).of("message-moderation", *DAY)).samples_cheap == []
    await third.turn()
    assert 200 < len((await SqlTraffic(database, ZONE).of("message-moderation", *DAY)).samples_cheap) < 340


async def test_a_busy_process_holds_a_bounded_number(database: Database, samples: SqlPromptSamples) -> None:
    """Inputs wait for two seconds at most, and never more than a thousand of them."""
    sampler, answered = PromptSampler(samples, 1.0), story()
    for number in range(1100):
        id = f"{number:08x}{answered.id[8:]}"
        sampler.answered(
            task(Words()), Answer(structs.replace(answered, invocation=invocation(id=id, received_at=NOON)))
        )
    await sampler.turn()
    assert len((await SqlTraffic(database, ZONE).of("message-moderation", *DAY)).samples_cheap) == 1000
