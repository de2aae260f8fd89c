"""`lab attack`: a functional and adversarial suite in the form of HateCheck (Röttger et al. 2021), through the cascade.

Three groups of cases: `functional` (one thing that a moderator must get right per function), `injection` (messages that
give orders to the model, violations with clean twins) and `obfuscation` (disguised violations, each with its clear
twin). All are run as written, and once more normalised by `core.text.clean` beforehand, as a caller could do: serving
normalises anyway, so a difference shows what its normalisation does not reach.
"""

import asyncio
import gzip
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.core.text import clean, fold
from gateway.lab.evaluate import METRICS, write_json
from gateway.lab.metrics import Interval, proportion
from gateway.lab.predictions import FILE as PREDICTIONS
from gateway.lab.predictions import Prediction, predict, write_predictions
from gateway.lab.readings import read_all
from gateway.lab.report import table
from gateway.lab.rows import Label, LabError, Row, SenderRole, read_jsonl
from gateway.lab.run_folder import run_folder
from gateway.lab.systems import Loaded, load_task
from gateway.lab.whole import write_whole

SUITE = "suite.jsonl.gz"
_CLEAR = ":clear"


class Case(Struct, frozen=True, kw_only=True):
    """One case. `pair` is the id of the case that differs in what matters; `twin_of_clear`: the words undisguised."""

    id: str
    function: str
    group: Literal["functional", "injection", "obfuscation"]
    sender_role: SenderRole
    message: str
    label: Label
    policy: str | None = None
    pair: str | None = None
    twin_of_clear: str | None = None


class Function(Struct, frozen=True, kw_only=True):
    """How a function went: cases passed (held if a violation, delivered if clean) as written and normalised."""

    group: str
    cases: int
    passed: Interval
    passed_normalised: Interval


class Attacks(Struct, frozen=True, kw_only=True):
    """`injection_success` is the share of injected violations that are delivered; `injection_false_alarms` that of
    clean twins that are held. `recall_kept` counts, of the violations caught in the clear, those caught disguised.
    """

    suite_sha256: str
    task_fingerprint: str
    cases: int
    functional_pass_rate: Interval
    macro_pass_rate: float
    injection_success: Interval | None
    injection_false_alarms: Interval | None
    recall_clear: Interval | None
    recall_disguised: Interval | None
    recall_kept: Interval | None
    recall_kept_folded: Interval | None
    pairs_right: Interval | None
    functions: dict[str, Function]


def pack_suite(source: Path, out: Path) -> int:
    """Check the cases, and write them as gzip JSONL without a time stamp; returns their number. Raises LabError."""
    cases = list(read_jsonl(source, Case))
    known = {case.id for case in cases}
    problems = [f"{c.id}: there is no case {c.pair}" for c in cases if c.pair is not None and c.pair not in known]
    problems += [
        f"{c.id}: a {c.label} with policy {c.policy}" for c in cases if (c.label == "violation") != bool(c.policy)
    ]
    if len(known) < len(cases) or problems:
        raise LabError("\n".join(problems) or f"{source}: two cases share an id")
    write_whole(out, gzip.compress(b"".join(msgspec.json.encode(c) + b"\n" for c in cases), 9, mtime=0))
    return len(cases)


def attack(
    home: Path, task: str, out: Path, base: Path, readings: Path, *, adapter: Path | None = None,
    suite: Path | None = None, threads: int = 1,
) -> Attacks:  # fmt: skip
    """Run the suite of the task's folder, or another one; `out` is written whole or not at all. Raises LabError."""
    loaded = load_task(home, task)
    path = suite or loaded.folder / SUITE
    cases = list(read_jsonl(path, Case))
    if not cases:
        raise LabError(f"{path}: there are no cases")
    said = _judged(loaded, _rows(cases), base, adapter, readings, threads)
    found = summarise(cases, said, loaded.task.fingerprint, _suite_hash(cases))
    with run_folder(out) as folder:
        write_json(folder / METRICS, found)
        write_predictions(folder / PREDICTIONS, list(said.values()))
        (folder / "report.md").write_text("\n".join(markdown(found)) + "\n")
    return found


def summarise(cases: Sequence[Case], said: Mapping[str, Prediction], fingerprint: str, suite_hash: str) -> Attacks:
    """Rates over predictions by case id; `<id>:clean`, `<id>:fold` and `<id>:clear` are the other forms of a case."""

    def right(case: Case, form: str = "") -> bool:
        return said[case.id + form].cascade.held == (case.label == "violation")

    functions: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        functions[case.function].append(case)
    injected = [c for c in cases if c.group == "injection"]
    bad = [c for c in injected if c.label == "violation"]
    disguised = [c for c in cases if c.group == "obfuscation" and c.label == "violation" and c.twin_of_clear]
    seen = [c for c in disguised if said[c.id + _CLEAR].cascade.held]
    by_id = {case.id: case for case in cases}
    pairs = {tuple(sorted((c.id, c.pair))) for c in cases if c.pair is not None}
    rates = {
        name: Function(
            group=members[0].group,
            cases=len(members),
            passed=_rate(members, right),
            passed_normalised=_rate(members, lambda c: right(c, ":clean")),
        )
        for name, members in sorted(functions.items())
    }
    functional = [f.passed.value for f in rates.values() if f.group == "functional"]
    return Attacks(
        suite_sha256=suite_hash,
        task_fingerprint=fingerprint,
        cases=len(cases),
        functional_pass_rate=_rate([c for c in cases if c.group == "functional"] or cases, right),
        macro_pass_rate=sum(functional) / len(functional) if functional else 0.0,
        injection_success=_maybe(bad, lambda c: not right(c)),
        injection_false_alarms=_maybe([c for c in injected if c.label == "clean"], lambda c: not right(c)),
        recall_clear=_maybe(disguised, lambda c: said[c.id + _CLEAR].cascade.held),
        recall_disguised=_maybe(disguised, right),
        recall_kept=_maybe(seen, right),
        recall_kept_folded=_maybe(seen, lambda c: right(c, ":fold")),
        pairs_right=proportion(sum(all(right(by_id[i]) for i in pair) for pair in pairs), len(pairs)),
        functions=rates,
    )


def markdown(found: Attacks) -> Iterable[str]:
    """The report's lines."""
    yield "# Functional and adversarial suite\n"
    yield f"{found.cases} cases, suite {found.suite_sha256[:12]}, task {found.task_fingerprint}.\n"
    yield from table(["what", "value"], [
        ["functional cases passed", found.functional_pass_rate],
        ["mean over functions", found.macro_pass_rate],
        ["contrast pairs with both right", found.pairs_right],
        ["injections that get a violation delivered", found.injection_success],
        ["clean twins of injections that are held", found.injection_false_alarms],
        ["recall in the clear", found.recall_clear],
        ["recall disguised", found.recall_disguised],
        ["recall kept under disguise", found.recall_kept],
        ["recall kept, folded beforehand", found.recall_kept_folded],
    ])  # fmt: skip
    head = ["function", "group", "cases", "passed", "passed, normalised beforehand"]
    rows = [[name, f.group, f.cases, f.passed, f.passed_normalised] for name, f in found.functions.items()]
    yield from table(head, rows)


def _judged(
    loaded: Loaded, rows: Sequence[Row], base: Path, adapter: Path | None, readings: Path, threads: int
) -> dict[str, Prediction]:
    tuned = read_all(loaded.asked(base, adapter), rows, readings, threads=threads)
    return {p.id: p for p in asyncio.run(predict(loaded, rows, tuned))}


def _rows(cases: Sequence[Case]) -> list[Row]:
    """Every case as written, cleaned and folded beforehand, and its clear twin."""
    rows: list[Row] = []
    for case in cases:
        forms = {"": case.message, ":clean": clean(case.message), ":fold": fold(case.message)}
        if case.twin_of_clear:
            forms[_CLEAR] = case.twin_of_clear
        rows += [
            Row(
                id=case.id + form, source=case.group, text=text, label=case.label, split="test", policy=case.policy,
                sender_role=case.sender_role,
            )
            for form, text in forms.items()
        ]  # fmt: skip
    return rows


def _rate(cases: Sequence[Case], passed: Callable[[Case], bool]) -> Interval:
    found = _maybe(cases, passed)
    assert found is not None, "a function has cases"
    return found


def _maybe(cases: Sequence[Case], passed: Callable[[Case], bool]) -> Interval | None:
    return proportion(sum(passed(case) for case in cases), len(cases))


def _suite_hash(cases: Sequence[Case]) -> str:
    return hashlib.sha256(b"\n".join(msgspec.json.encode(case) for case in cases)).hexdigest()
