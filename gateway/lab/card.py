"""`lab card`: the measured half of a task's MODEL_CARD.md, from the records beside the artifacts.

People write what the models are for, and what not; between two marker lines this program writes data, training,
calibration and results. The same files give the same text.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.lab.evaluate import file_sha256
from gateway.lab.report import TITLES, table
from gateway.lab.reproduce import ATTACK, RESULTS, SETS
from gateway.lab.rows import CORPUS, LabError
from gateway.lab.whole import write_whole

FILE = "MODEL_CARD.md"
BEGIN, END = "<!-- written by `gateway lab card`: begin -->", "<!-- written by `gateway lab card`: end -->"
LICENCES: Mapping[str, str] = {
    CORPUS: "project", "davidson2017": "MIT", "edos": "CC0 1.0", "convabuse": "CC BY 4.0", "uci_sms_spam": "CC BY 4.0",
    "youtube_spam": "CC BY 4.0", "spamassassin": "PDDL", "sgd_services_homes": "CC BY-SA 4.0",
    "multidogo": "CDLA-Permissive-1.0", "banking77": "CC BY 4.0", "nlupp": "CC BY 4.0", "clinc150": "CC BY 3.0",
}  # fmt: skip
"""Of each source, as NOTICE has them with authors and origin."""


def write_card(folder: Path) -> Path:
    """Renew the measured half of the card in a task's folder. Raises LabError naming what is missing."""
    path = folder / FILE
    before, after = _prose(path)
    try:
        lines = [before, BEGIN, "", *measured(folder), END]
    except (KeyError, TypeError) as error:
        raise LabError(f"{folder}: a record of training, calibration or results lacks {error}") from error
    write_whole(path, ("\n".join(lines) + after).encode())
    return path


def measured(folder: Path) -> Iterator[str]:
    """The lines between the markers."""
    adapter, prefilter = _json(folder / "adapter" / "training.json"), _json(folder / "prefilter.json")
    yield from _artifacts(folder)
    yield from _data(adapter["facts"]["rows_seen"], prefilter["training"]["rows"])
    yield from _training(adapter, prefilter)
    yield from _calibration(_json(folder / "llm-calibration.json"))
    yield "## Results\n"
    results = {name: _json(path) for name in SETS if (path := folder / RESULTS / f"{name}.json").exists()}
    for name, result in results.items():
        yield from _result(name, result)
    if (suite := folder / RESULTS / f"{ATTACK}.json").exists():
        yield from _attack(_json(suite))
    if not results:
        yield "None are committed.\n"


def _artifacts(folder: Path) -> Iterator[str]:
    stages = _toml(folder / "task.toml").get("stage", [])
    thresholds = [[s["name"], s.get("accept_below"), s.get("accept_above")] for s in stages if s["kind"] != "rules"]
    files = (folder / "prefilter.safetensors", folder / "adapter" / "adapter_model.safetensors")
    yield "## Artifacts\n"
    sizes = [[f"`{f.relative_to(folder)}`", f"{f.stat().st_size / 1e6:.1f} MB", file_sha256(f)] for f in files]
    yield from table(["weights", "size", "sha256"], sizes)
    yield from table(["stage", "clean below", "violation from"], [[n, _four(b), _four(a)] for n, b, a in thresholds])


def _data(seen: Mapping[str, int], pool: Mapping[str, int]) -> Iterator[str]:
    yield "## Training data\n"
    yield "Rows that the LLM has seen, disguises and repeats included; rows that the prefilter draws from.\n"
    sources = sorted({key.split("/")[0] for key in (*seen, *pool)})
    yield from table(
        ["source", "licence", "LLM, clean", "LLM, violations", "prefilter, clean", "prefilter, violations"],
        [[s, LICENCES.get(s, "see NOTICE"), *(rows.get(f"{s}/{label}", 0) for rows in (seen, pool)
                                              for label in ("clean", "violation"))] for s in sources],
    )  # fmt: skip


def _training(adapter: Mapping[str, Any], prefilter: Mapping[str, Any]) -> Iterator[str]:
    config, facts, training = adapter["config"], adapter["facts"], prefilter["training"]
    seconds = adapter.get("seconds")
    yield "## Training\n"
    yield from table(["fine-tuned LLM", ""], [
        ["base", config["base_name"]],
        ["LoRA", f"rank {config['rank']}, alpha {config['alpha']}, from block {config['from_layer']} up"],
        ["prompt", facts["prompt"]],
        ["epochs", config["epochs"]],
        ["learning rate, seed", f"{config['learning_rate']}, {config['seed']}"],
        ["minutes on one core", "not recorded" if seconds is None else round(seconds / 60)],
        ["began with", facts.get("started_from_sha256", "fresh LoRA weights")],
        ["stops", facts.get("interrupted", {}).get("note", "none")],
        ["data", facts["data_sha256"]],
    ])  # fmt: skip
    if teacher := training.get("teacher"):
        teacher = f"the LLM, {teacher['weight']:.0%} of {teacher['rows']} rows' targets"
    shape = ", ".join(f"{k} {v}" for k, v in prefilter["shape"].items())
    yield from table(["prefilter", ""], [
        ["network", shape],
        ["seed", training["seed"]],
        ["teacher", teacher or "none"],
        ["data", training["data_sha256"]],
    ])  # fmt: skip


def _calibration(notes: Mapping[str, Any]) -> Iterator[str]:
    yield "## Calibration\n"
    chosen = notes.get("thresholds", {})
    yield from table(["LLM", ""], [
        ["Platt", f"slope {notes['a']:.4f}, offset {notes['b']:.4f}, at {notes['fitted_at_prevalence']} violations"],
        ["fitted on", f"{notes.get('rows', 'some')} rows, {notes['rows_sha256']}"],
        ["threshold", chosen.get("chosen", "see task.toml")],
        ["chosen on", f"{chosen['rows']} rows, {chosen['rows_sha256']}" if chosen else "see task.toml"],
    ])  # fmt: skip
    rows = [
        [source, system, at["violations"], _interval(at["recall"]), at["hard_negatives"],
         _interval(at["hard_negatives_flagged"])]
        for source, systems in chosen.get("marketplace", {}).items() for system, at in systems.items()
    ]  # fmt: skip
    if rows:
        yield from table(["rows of the choice", "", "violations", "recall", "hard negatives", "flagged"], rows)


def _result(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    about = found["about"]
    yield f"### {name}: {about['rows']} messages, {about['violations']} violations, data {about['data_sha256'][:12]}\n"
    yield from table(["system", "AUC within sources", "pooled AUC", "recall", "false positives", "precision"], [
        [TITLES[n], _interval(s["auc"]), _interval(s["pooled_auc"]), _interval(s["operating"]["recall"]),
         _interval(s["operating"]["false_positive_rate"]), _interval(s["operating"]["precision"])]
        for n, s in found["systems"].items()
    ])  # fmt: skip
    parts = found["systems"]["cascade"]["parts"]
    tuned = found["systems"]["tuned"]["parts"]
    head = ["source", "rows", "fine-tuned AUC", "cascade: recall", "cascade: false positives", "routed, clean rows"]
    yield from table(head, [
        [n.removeprefix("source/"), p["rows"], _interval(tuned[n]["auc"]), _interval(p["recall"]),
         _interval(p["false_positive_rate"]),
         _interval(found["cascade"]["routed_of"].get(f"{n.removeprefix('source/')}/clean"))]
        for n, p in parts.items() if n.startswith("source/")
    ])  # fmt: skip


def _attack(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"### Functional and adversarial suite: {found['cases']} cases, {found['suite_sha256'][:12]}\n"
    yield from table(["what", "value"], [
        ["functional cases passed", _interval(found["functional_pass_rate"])],
        ["injections that get a violation delivered", _interval(found["injection_success"])],
        ["clean twins of injections that are held", _interval(found["injection_false_alarms"])],
        ["recall kept under disguise", _interval(found["recall_kept"])],
    ])  # fmt: skip


def _interval(found: Mapping[str, float] | None) -> str | None:
    return None if found is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _prose(path: Path) -> tuple[str, str]:
    """What stands before and after the markers."""
    try:
        text = path.read_text("utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
    except OSError as error:
        raise LabError(
            f"{path}: {error.strerror}; write what the models are for, and the markers {BEGIN} and {END}"
        ) from error
    except (ValueError, IndexError) as error:
        raise LabError(f"{path}: needs the lines {BEGIN} and {END}, once each") from error
    return before.rstrip("\n") + "\n", after


def _json(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise LabError(f"{path}: {error}") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{path}: {error}") from error
