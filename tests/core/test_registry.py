"""Folders become tasks, or a full list of problems; the fingerprint changes with what shapes answers alone."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.schema import Schema
from gateway.core.cascade import Finding
from gateway.core.errors import UnknownTask
from gateway.core.loaded import LoadedModel, StageFiles, Validator
from gateway.core.meter import Meter
from gateway.core.problems import InvalidConfig
from gateway.core.registry import Registry, load
from gateway.core.task import ChainStage, Stage

TASK = """
owner = "trust"
description = "Is it rude?"
input = "input.json"
output = "output.json"
positive = "rude"

[[stage]]
name = "rules"
kind = "rules"
file = "rules.toml"
decides = ["rude"]

[[stage]]
name = "llm"
kind = "chain"
prompt = "manners/ask.v1"
model = "small"
labels = { fine = "A", rude = "B" }
calibration = "calibration.json"
accept_above = 0.5
accept_below = 0.5

[actions]
fine = "deliver"
rude = "review"
deferred = "review"

[[quota]]
resource = "cost"
limit = "10.00"
per = "month"
scope = ["task"]

[cache]
ttl_s = 60
"""
MODELS = """
[small]
kind = "tgi"
urls = ["http://127.0.0.1:1"]
model_id = "tiny"
[[small.price]]
from = 2026-01-01
input_per_million = "1.00"
output_per_million = "2.00"
"""
FILES = {
    "models.toml": MODELS,
    "prompts/manners/ask.v1.md": "Is it rude?\n---\n{{message}}\n",
    "tasks/manners/task.toml": TASK,
    "tasks/manners/input.json": '{"type": "object", "properties": {"message": {"type": "string"}}}',
    "tasks/manners/output.json": '{"type": "object"}',
    "tasks/manners/rules.toml": "",
    "tasks/manners/calibration.json": "{}",
    "tasks/manners/examples.jsonl": '{"input": {"message": "Hi"}, "label": "fine"}\n',
}


class Plain:
    """Builds schemas for real, and stages that have no opinion."""

    def schema(self, document: Any, file: str) -> Validator:
        return Schema(document, file)

    def stage(self, stage: Stage, files: StageFiles, place: str) -> "Plain":
        return self

    def conversation(self, stage: ChainStage, model: LoadedModel) -> "Plain":
        return self

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        return Finding()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one good task."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path


def read(home: Path) -> Registry:
    return load(home, Plain())


def problems(home: Path) -> dict[str, str]:
    with pytest.raises(InvalidConfig) as caught:
        read(home)
    return {f"{p.file}: {p.path}": p.message for p in caught.value.problems}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_a_good_home_becomes_a_registry(home: Path) -> None:
    """Everything that the files say is there."""
    task = read(home).task("manners")
    assert [step.stage.name for step in task.steps] == ["rules", "llm"]
    assert task.limits[0].limit == 10_000_000_000
    assert task.examples[0].label == "fine"


def test_an_unknown_task_offers_the_near_miss(home: Path) -> None:
    """Typos are the commonest mistake of callers."""
    with pytest.raises(UnknownTask, match="did you mean `manners`"):
        read(home).task("maners")


def test_mistakes_in_all_files_are_reported_together(home: Path) -> None:
    """One run of `gateway check` shows everything that has to be mended."""
    task = home / "tasks/manners/task.toml"
    edit(task, 'decides = ["rude"]', 'decides = ["rood"]')
    edit(task, 'model = "small"', 'model = "smal"')
    edit(task, '"calibration.json"', '"../../models.toml"')
    edit(task, 'deferred = "review"', "")
    edit(task, '"10.00"', '"ten"')
    edit(home / "prompts/manners/ask.v1.md", "{{message}}", "{{mesage}}")
    edit(home / "tasks/manners/examples.jsonl", '"fine"', '"good"')
    edit(home / "models.toml", "http://", "ftp://")
    (home / "tasks/manners/output.json").write_text("{", "utf-8")
    (home / "tasks/empty").mkdir()
    assert set(problems(home)) == {
        "models.toml: small.urls",
        "prompts/manners/ask.v1.md: {{mesage}}",
        "tasks/empty/task.toml: ",
        "tasks/manners/examples.jsonl: line 1",
        "tasks/manners/output.json: ",
        "tasks/manners/task.toml: actions.deferred",
        "tasks/manners/task.toml: quota[0]",
        "tasks/manners/task.toml: stage[0].decides",
        "tasks/manners/task.toml: stage[1].calibration",
        "tasks/manners/task.toml: stage[1].model",
    }


@pytest.mark.parametrize("answer", ["text", "json"])
def test_an_answer_without_label_has_no_keys_of_labels(home: Path, answer: str) -> None:
    """Labels, thresholds and actions mean nothing for text and JSON: each is named, none is passed over."""
    edit(home / "tasks/manners/task.toml", 'model = "small"', f'model = "small"\nanswer = "{answer}"')
    found = {place for place in problems(home) if "stage[1]" in place}
    keys = ("accept_above", "accept_below", "answer", "calibration", "labels")
    assert found == {f"tasks/manners/task.toml: stage[1].{key}" for key in keys}


@pytest.mark.parametrize("line", ['{"input": {"message": "Hi"}}', '{"input": {"message": "Hi"}, "lacks": ["@"]}'])
def test_an_example_of_a_task_with_labels_names_one(home: Path, line: str) -> None:
    """What a text holds or lacks is asked of answers without label only."""
    (home / "tasks/manners/examples.jsonl").write_text(line, "utf-8")
    assert problems(home) == {"tasks/manners/examples.jsonl: line 1": "this example has no label"}


def change_threshold(home: Path) -> None:
    edit(home / "tasks/manners/task.toml", "accept_above = 0.5", "accept_above = 0.6")


def change_rules(home: Path) -> None:
    (home / "tasks/manners/rules.toml").write_text("# new", "utf-8")


def change_prompt(home: Path) -> None:
    edit(home / "prompts/manners/ask.v1.md", "rude?", "impolite?")


def change_calibration(home: Path) -> None:
    (home / "tasks/manners/calibration.json").write_text('{"a": 2}', "utf-8")


def change_schema(home: Path) -> None:
    edit(home / "tasks/manners/output.json", '"object"}', '"object", "title": "t"}')


def change_model(home: Path) -> None:
    edit(home / "models.toml", '"tiny"', '"tinier"')


def change_action(home: Path) -> None:
    edit(home / "tasks/manners/task.toml", 'rude = "review"', 'rude = "block"')


def add_adapter(home: Path) -> None:
    (home / "tasks/manners/adapter").mkdir()
    (home / "tasks/manners/adapter/adapter_model.safetensors").write_bytes(b"w")


def add_chain(home: Path) -> None:
    (home / "tasks/manners/chain.py").write_text("", "utf-8")


def change_quota(home: Path) -> None:
    edit(home / "tasks/manners/task.toml", '"10.00"', '"20.00"')


def change_url(home: Path) -> None:
    edit(home / "models.toml", ":1", ":2")


def change_price(home: Path) -> None:
    edit(home / "models.toml", '"2.00"', '"3.00"')


def change_patience(home: Path) -> None:
    edit(home / "tasks/manners/task.toml", "accept_above = 0.5", "accept_above = 0.5\nretries = 1\ntimeout_s = 1")


@pytest.mark.parametrize(
    "change",
    [
        change_threshold, change_rules, change_prompt, change_calibration, change_schema, change_model, change_action,
        add_adapter, add_chain,
    ],
)  # fmt: skip
def test_what_shapes_answers_changes_the_fingerprint(home: Path, change: Callable[[Path], None]) -> None:
    """A stale answer can then never be served: the fingerprint is part of the cache's key."""
    before = read(home).task("manners").fingerprint
    change(home)
    assert read(home).task("manners").fingerprint != before


@pytest.mark.parametrize("change", [change_quota, change_url, change_price, change_patience])
def test_what_does_not_shape_answers_leaves_the_fingerprint(home: Path, change: Callable[[Path], None]) -> None:
    """A new replica, price or quota throws no kept answer away; the config hash shows it all the same."""
    before = read(home).task("manners")
    change(home)
    after = read(home).task("manners")
    assert after.fingerprint == before.fingerprint
    assert after.config_hash != before.config_hash


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(home: Path, tmp_path: Path) -> None:
    """Two replicas with the same files serve the same version."""
    other = tmp_path / "elsewhere"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns("elsewhere"))
    assert read(home).task("manners").fingerprint == read(other).task("manners").fingerprint
