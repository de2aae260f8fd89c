"""predictions.jsonl: what every system said of every row. Message text is never in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.adapters.calibration import label_logprobs
from gateway.core.cascade import Finding, Outcome, StageFailed
from gateway.core.inference import Attempt
from gateway.core.task import ChainStage, CnnStage, RulesStage
from gateway.lab.previous import Previous, Said
from gateway.lab.readings import Reading, row_key
from gateway.lab.rows import CORPUS, MARKETPLACE_DEV, Row, read_jsonl
from gateway.lab.systems import Loaded, decide, findings, recorded_chain
from gateway.lab.whole import write_whole

FILE = "predictions.jsonl"
_RULE_RANK, _HELD_RANK = 2.0, 1.0


class Decided(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The cascade's decision. `rank` orders all rows: rule hits, then what nobody could decide, then the LLM's score,
    then the prefilter's among what it cleared.
    """

    status: str
    rank: float
    held: bool
    label: str | None = None
    stage: str | None = None
    action: str | None = None
    reason: str | None = None
    policies: tuple[str, ...] = ()
    llm_called: bool = False


class Prediction(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row. `llm` is the calibrated score, `llm_margin` the raw log-odds; `prompted` the base model's log-odds."""

    id: str
    source: str
    label: str
    words: int
    cascade: Decided
    policy: str | None = None
    difficulty: str | None = None
    rules: tuple[str, ...] = ()
    cnn: float | None = None
    llm: float = 0.0
    llm_margin: float = 0.0
    llm_mass: float = 0.0
    llm_policy: str | None = None
    llm_input_tokens: int = 0
    prompted: float | None = None
    previous: Said | None = None

    @property
    def synthetic(self) -> bool:
        """Written for this project, not found in the world."""
        return self.source in (CORPUS, MARKETPLACE_DEV)


async def predict(
    loaded: Loaded,
    rows: Sequence[Row],
    tuned: Mapping[str, Reading],
    *,
    prompted: Mapping[str, Reading] | None = None,
    previous: Previous | None = None,
) -> list[Prediction]:
    """All systems on all rows. `tuned` and `prompted` are readings by `row_key`, of every row."""
    stages = [step.stage for step in loaded.task.steps]
    found = []
    for step in loaded.task.steps:
        runner = recorded_chain(loaded, tuned) if isinstance(step.stage, ChainStage) else step.runner
        found.append(await findings(runner, rows, step.stage.name))
    old: Sequence[Said | None] = [None] * len(rows)
    if previous is not None:
        old = await previous.judge(rows)
    predictions = []
    for i, row in enumerate(rows):
        of_row = [column[i] for column in found]
        outcome = await decide(loaded.task.declared, stages, of_row)
        reading, platt = tuned[row_key(row)], loaded.platt()
        predictions.append(
            Prediction(
                id=row.id,
                source=row.source,
                label=row.label,
                words=len(row.text.split()),
                policy=row.policy,
                difficulty=row.difficulty,
                rules=next((f.matched for f in _of(RulesStage, stages, of_row)), ()),
                cnn=next((f.score for f in _of(CnnStage, stages, of_row)), None),
                llm=round(platt.score(reading.margin(loaded.positive)), 6),
                llm_margin=round(reading.margin(loaded.positive), 5),
                llm_mass=round(label_mass(reading), 5),
                llm_policy=reading.policy,
                llm_input_tokens=reading.input_tokens,
                prompted=None if prompted is None else round(prompted[row_key(row)].margin(loaded.positive), 5),
                previous=old[i],
                cascade=decided(outcome, loaded.positive),
            )
        )
    return predictions


def decided(outcome: Outcome, positive: str) -> Decided:
    """What the report needs of an outcome."""
    decision = outcome.decision
    last = outcome.attempts[-1]
    output = decision.output or {}
    return Decided(
        status=decision.status,
        rank=_rank(outcome, last, positive),
        held=decision.label == positive or decision.status != "accepted",
        label=decision.label,
        stage=decision.stage,
        action=decision.action,
        reason=decision.reason,
        policies=tuple(output.get("policies", ())),
        llm_called=any(a.kind == "chain" and a.reason != "input_too_long" for a in outcome.attempts),
    )


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One line each; whole or not at all."""
    write_whole(path, b"".join(msgspec.json.encode(p) + b"\n" for p in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote. Raises LabError."""
    return list(read_jsonl(path, Prediction))


def label_mass(reading: Reading) -> float:
    """Probability that lies on the labels at all."""
    position = reading.reply().positions[0]
    return label_logprobs(position, {label: label for label in reading.labels}).mass


def _rank(outcome: Outcome, last: Attempt, positive: str) -> float:
    if outcome.decision.status != "accepted":
        return _HELD_RANK
    if last.kind == "rules":
        return _RULE_RANK if last.label == positive else -_RULE_RANK
    score = last.score if last.score is not None else 0.0
    return score if last.kind == "chain" else score - 1


def _of(kind: type, stages: Sequence[object], found: Sequence[Finding | StageFailed]) -> list[Finding]:
    return [f for stage, f in zip(stages, found, strict=True) if isinstance(stage, kind) and isinstance(f, Finding)]
