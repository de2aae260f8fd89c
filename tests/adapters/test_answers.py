"""Answers of text and JSON through both doors: streamed, checked, mended once, and counted whatever happens."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from chain_stage import ITEM, Metered, declared_model, declared_stage, files_for
from fault_server import Behaviour, FaultServer, breaking_off, failing_within, saying, stalling, status

from gateway.adapters.chain_builder import ChainBuilder
from gateway.core.cascade import Finding, Runner, StageFailed
from gateway.core.problems import InvalidConfig

REPLY = {"type": "object", "properties": {"reply": {"type": "string", "maxLength": 40}}, "required": ["reply"]}
FACTS = {
    "type": "object",
    "properties": {"service": {"type": "string"}, "budget": {"type": ["integer", "null"]}},
    "required": ["service", "budget"],
    "additionalProperties": False,
}
GOOD = '{"service": "cleaning", "budget": 80}'


class Stages:
    """Builds stages without labels over a URL."""

    def __init__(self, builder: ChainBuilder, kind: str, folder: Path) -> None:
        self.builder, self.kind, self.folder = builder, kind, folder

    def build(self, url: str, answer: str, output: dict[str, Any], folder: Path | None = None, **stage: Any) -> Runner:
        declared = declared_stage(answer=answer, labels={}, **stage)
        model = declared_model(url, kind=self.kind, tokenizer=str(self.folder / "tokenizer.json"))
        files = files_for(declared, model, folder or self.folder, None, output)
        return self.builder.build(declared, files, "stage[0]")


@pytest.fixture
def stages(builder: ChainBuilder, kind: str, tiny_llm_folder: Path) -> Stages:
    return Stages(builder, kind, tiny_llm_folder)


async def failure(runner: Runner, metered: Metered) -> str:
    with pytest.raises(StageFailed) as failed:
        await runner.run(ITEM, metered.meter)
    return failed.value.reason


async def test_a_text_is_the_one_field_of_the_output(stages: Stages, server: FaultServer, url: str) -> None:
    """Whole, settled as counted, up to max_output_tokens, and without a question for log-probabilities."""
    server.script.append(saying("Gladly. At nine?"))
    metered = Metered()
    finding = await stages.build(url, "text", REPLY, max_output_tokens=50).run(ITEM, metered.meter)
    assert finding == Finding(output={"reply": "Gladly. At nine?"})
    assert [(call.settled, call.usage.output_tokens) for call in metered.calls] == [(True, 16)]
    (seen,) = server.asked
    asked = seen.body.get("parameters", seen.body)
    assert 50 in (asked.get("max_new_tokens"), asked.get("max_tokens"))
    assert not {"top_n_tokens", "logprobs"} & set(asked)


@pytest.mark.parametrize(("text", "reason"), [(" \n", "model_answer_invalid"), ("x" * 41, "answer_breaks_schema")])
async def test_a_text_that_the_schema_refuses_fails(
    stages: Stages, server: FaultServer, url: str, text: str, reason: str
) -> None:
    """Nothing said, or too much: the stage failed, and the call is paid for."""
    server.script.append(saying(text))
    metered = Metered()
    assert await failure(stages.build(url, "text", REPLY), metered) == reason
    assert metered.outcomes == ["ok"]


async def test_who_listens_hears_every_token(stages: Stages, server: FaultServer, url: str) -> None:
    """The pieces, added up, are the output; the streamed answer's own counts are settled."""
    server.script.append(saying("Gladly."))
    heard: list[dict[str, Any]] = []
    metered = Metered(heard.append)
    finding = await stages.build(url, "text", REPLY).run(ITEM, metered.meter)
    assert heard == [{"reply": letter} for letter in "Gladly."]
    assert finding.output == {"reply": "Gladly."}
    (call,), (intent,) = metered.calls, metered.books.intents
    assert (call.settled, call.usage.output_tokens) == (True, 7)
    assert 0 < call.usage.input_tokens <= intent.estimate.input_tokens


@pytest.mark.parametrize(
    ("behaviour", "reason", "outcome"),
    [
        (breaking_off, "model_error", "error"),
        (failing_within, "model_error", "error"),
        (stalling, "model_timeout", "timeout"),
    ],
)
async def test_what_was_heard_is_not_said_again(
    stages: Stages, server: FaultServer, url: str, behaviour: Behaviour, reason: str, outcome: str
) -> None:
    """After the first token there is no other try; what the server may have counted is unsettled, at the estimate."""
    server.says = [{"Y": -0.1}, {"e": -0.1}]
    server.script.append(behaviour)
    heard: list[dict[str, Any]] = []
    metered = Metered(heard.append)
    timeout_s = 2.0 if behaviour is stalling else 30.0
    assert await failure(stages.build(url, "text", REPLY, timeout_s=timeout_s), metered) == reason
    assert [(call.outcome, call.settled) for call in metered.calls] == [(outcome, False)]
    assert len(heard) == 1


async def test_before_the_first_token_a_stream_is_tried_again(stages: Stages, server: FaultServer, url: str) -> None:
    """A full server is asked again: nobody has heard anything yet."""
    server.script.extend([status(429), saying("Yes.")])
    heard: list[dict[str, Any]] = []
    metered = Metered(heard.append)
    await stages.build(url, "text", REPLY).run(ITEM, metered.meter)
    assert metered.outcomes == ["refused", "ok"]
    assert len(heard) == 4


async def test_the_real_server_streams_and_counts(stages: Stages, llm_server: str) -> None:
    """Over the real local LLM server the pieces are the output, and its counts are settled within the estimate."""
    heard: list[dict[str, Any]] = []
    metered = Metered(heard.append)
    output = {"type": "object", "properties": {"text": {"type": "string"}}}
    finding = await stages.build(llm_server, "text", output, max_output_tokens=24).run(ITEM, metered.meter)
    assert "".join(piece["text"] for piece in heard) == finding.output["text"]
    (call,), (intent,) = metered.calls, metered.books.intents
    assert (call.settled, call.usage.output_tokens) == (True, 24)
    assert 0 < call.usage.input_tokens <= intent.estimate.input_tokens


@pytest.mark.parametrize("said", [GOOD, f"Sure:\n```json\n{GOOD}\n```"])
async def test_json_is_found_and_checked(stages: Stages, server: FaultServer, url: str, said: str) -> None:
    """One object, with or without words around it; the schema goes along as a grammar."""
    server.script.append(saying(said))
    finding = await stages.build(url, "json", FACTS).run(ITEM, Metered().meter)
    assert finding == Finding(output={"service": "cleaning", "budget": 80})
    (seen,) = server.asked
    if seen.path == "/":
        assert seen.body["parameters"]["grammar"] == {"type": "json", "value": FACTS}
    else:
        assert seen.body["response_format"]["json_schema"]["schema"] == FACTS


@pytest.mark.parametrize(
    "wrong", ["I cannot say.", '{"service": "cleaning"}', '{"service": 1, "budget": 2}', "{", "}{"]
)
async def test_wrong_json_is_asked_for_once_more(stages: Stages, server: FaultServer, url: str, wrong: str) -> None:
    """The second question holds the first answer, as inert text, and what is wrong with it; both calls are metered."""
    server.script.extend([saying(f"{wrong} <|im_end|>"), saying(GOOD)])
    metered = Metered()
    finding = await stages.build(url, "json", FACTS).run(ITEM, metered.meter)
    assert finding.output["budget"] == 80
    assert metered.outcomes == ["ok", "ok"]
    asked = json.dumps(server.asked[1].body, ensure_ascii=False)
    assert "An earlier answer was" in asked
    assert "$" in asked
    assert asked.count("<|im_end|>") == json.dumps(server.asked[0].body).count("<|im_end|>")


async def test_json_that_stays_wrong_fails(stages: Stages, server: FaultServer, url: str) -> None:
    """One repair, not two; the reason quotes nothing of the answer."""
    server.script.extend([saying("secret")] * 3)
    metered = Metered()
    with pytest.raises(StageFailed) as failed:
        await stages.build(url, "json", FACTS).run(ITEM, metered.meter)
    assert failed.value.reason == "answer_breaks_schema"
    assert "secret" not in str(failed.value)
    assert metered.outcomes == ["ok", "ok"]


async def test_a_server_without_grammars_is_asked_without(stages: Stages, server: FaultServer, url: str) -> None:
    """A refused grammar costs one refused request, once; a question that is refused anyway says nothing of grammars."""
    runner = stages.build(url, "json", FACTS)
    server.script.extend([status(422), status(422)])
    assert await failure(runner, Metered()) == "model_refused"
    server.script.extend([status(422, "validation"), saying(GOOD), saying(GOOD)])
    metered = Metered()
    await runner.run(ITEM, metered.meter)
    assert metered.outcomes == ["refused", "ok"]
    await runner.run(ITEM, metered.meter)
    wishes = ["grammar" in json.dumps(seen.body) or "response_format" in seen.body for seen in server.asked]
    assert wishes == [True, False, True, False, False]


async def test_the_real_server_keeps_to_the_grammar(stages: Stages, llm_server: str) -> None:
    """A random model says what the schema allows, at once; cut off before its end it is asked again, and fails."""
    service, budget = {"enum": ["cleaning", "garden"]}, {"type": "integer", "minimum": 0, "maximum": 99}
    short = {**FACTS, "properties": {"service": service, "budget": budget}}
    metered, cut = Metered(), Metered()
    finding = await stages.build(llm_server, "json", short, max_output_tokens=60).run(ITEM, metered.meter)
    assert finding.output is not None
    assert (set(finding.output), metered.outcomes) == ({"service", "budget"}, ["ok"])
    assert await failure(stages.build(llm_server, "json", short, max_output_tokens=4), cut) == "answer_breaks_schema"
    assert cut.outcomes == ["ok", "ok"]


@pytest.mark.parametrize("output", [{"type": "object"}, FACTS, {"properties": {"n": {"type": "integer"}}}])
async def test_a_text_needs_one_field_to_go_to(stages: Stages, output: dict[str, Any]) -> None:
    """Any other output schema is a problem of the task."""
    with pytest.raises(InvalidConfig) as invalid:
        stages.build("http://127.0.0.1:1", "text", output)
    assert [(p.file, p.path) for p in invalid.value.problems] == [("tasks/t/task.toml", "stage[0].answer")]


OWN_CHAIN = """
from langchain_core.runnables import RunnableLambda


def shorten(item):
    return {**item, "message": item["message"].split()[0]}


def build(stage, model):
    assert stage.declared.name == "llm"
    return RunnableLambda(shorten) | stage.prompt | model
"""


async def test_a_chain_of_the_teams_own(stages: Stages, server: FaultServer, url: str, tmp_path: Path) -> None:
    """chain.py stands in for prompt | model; its calls are metered, its answer is checked like any other."""
    (tmp_path / "chain.py").write_text(OWN_CHAIN, "utf-8")
    for answer, output, said in (("text", REPLY, "Yes."), ("json", FACTS, GOOD)):
        server.script.append(saying(said))
        metered = Metered()
        finding = await stages.build(url, answer, output, tmp_path).run(ITEM, metered.meter)
        assert finding.output in ({"reply": "Yes."}, json.loads(GOOD))
        assert metered.outcomes == ["ok"]
        asked = json.dumps(server.asked[-1].body)
        assert "Message: Can" in asked
        assert "nine" not in asked


async def test_a_chain_of_labels_keeps_its_score(stages: Stages, url: str, tmp_path: Path) -> None:
    """With labels, too, the own chain ends where the gateway reads the log-probabilities."""
    (tmp_path / "chain.py").write_text(OWN_CHAIN, "utf-8")
    declared = declared_stage()
    model = declared_model(url, kind=stages.kind, tokenizer=str(stages.folder / "tokenizer.json"))
    runner = stages.builder.build(declared, files_for(declared, model, tmp_path), "stage[0]")
    assert (await runner.run(ITEM, Metered().meter)).score == pytest.approx(0.9168, abs=1e-4)


@pytest.mark.parametrize(
    "source",
    ["def build(stage): ...", "def build(stage, model):\n    return 3", "1 / 0", "def nothing(): ...", "def build("],
)
async def test_a_broken_chain_is_a_problem(stages: Stages, tmp_path: Path, source: str) -> None:
    """Whatever the file does wrong while it is loaded is told as a problem of that file."""
    (tmp_path / "chain.py").write_text(source, "utf-8")
    with pytest.raises(InvalidConfig) as invalid:
        stages.build("http://127.0.0.1:1", "text", REPLY, tmp_path)
    assert [p.file for p in invalid.value.problems] == ["tasks/t/chain.py"]


async def test_cancelling_a_stream_closes_it(stages: Stages, server: FaultServer, url: str) -> None:
    """A stage that is cancelled in the middle leaves an unsettled call, and no connection that is read on."""
    server.says = [{"Y": -0.1}, {"e": -0.1}]
    server.script.append(stalling)
    metered = Metered(lambda _: None)
    running = asyncio.ensure_future(stages.build(url, "text", REPLY).run(ITEM, metered.meter))
    await server.hung.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(call.outcome, call.settled) for call in metered.calls] == [("cancelled", False)]
