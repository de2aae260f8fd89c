"""Error texts are a product: what task owners are shown, against the words that are kept in tests/snapshots."""

import re
from pathlib import Path

import pytest
from snapshot import snapshot
from stack import MANNERS, MODELS, make_home

from gateway.__main__ import main

TASK = (
    MANNERS.replace('owner = "etiquette"', 'owner = "Etiquette & Co"\nownr = "x"')
    .replace('positive = "rude"', 'positive = "rood"\npayer = "nobody"')
    .replace('file = "rules.toml"', 'file = "../rules.toml"\ndecides = ["rood"]')
    .replace("accept_above = 0.0", "accept_above = 1.5")
    .replace("ttl_s = 60", "ttl_s = 0")
)
SENSIBLE = (
    MANNERS.replace('prompt = "manners/ask.v1"', 'prompt = "manners/asks.v1"\ncalibration = "calibration.json"')
    .replace('model = "tiny"', 'model = "tinny"')
    .replace('decides = ["rude"]', "")
    .replace('deferred = "review"\n', "")
    .replace("accept_above = 0.0", "accept_above = 0.2\naccept_below = 0.4")
    + '\n[[quota]]\nresource = "cost"\nlimit = "ten"\nper = "month"\nscope = ["task"]\n'
    + '\n[[quota]]\nresource = "tokens"\nlimit = 5\nscope = ["task"]\n'
    + '\n[policy.abuse]\nseverity = 3\ntext = "policies/abuse.md"\n'
)
MISTAKES = {
    "models.toml": MODELS.replace('"env:LLM_URL"', '"ftp://llm"').replace(
        'model_id = "tiny"', 'model_id = "tiny"\nkey = "hunter2"\nchat_format = "chatlm"'
    ),
    "prompts/manners/ask.v1.md": "No line between the parts. {{message}}\n",
    "prompts/manners/final.md": "A name without a number.\n---\n{{message}}\n",
    "tasks/manners/task.toml": TASK,
    "tasks/sensible/task.toml": SENSIBLE,
    "tasks/sensible/input.json": "{",
    "tasks/sensible/output.json": '{"type": "objekt"}',
    "tasks/sensible/rules.toml": '[[rule]]\nname = "a"\nlabel = "fein"\npatterns = ["(", ""]\n',
    "tasks/sensible/examples.jsonl": '{"input": {"message": "Hi"}, "label": "good"}\n{"input": 5}\n',
    "tasks/Shouting/task.toml": "= 5",
    "tasks/empty/readme.txt": "",
}


def test_check_tells_twenty_mistakes_at_once(
    tmp_path: Path, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`gateway check` names every mistake of every file with its place and a hint, and ends with status 2."""
    home = make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json", MISTAKES)
    monkeypatch.setenv("GATEWAY_HOME", str(home))
    monkeypatch.setattr("sys.argv", ["gateway", "check"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    found = re.match(r"(\d+) problem", said)
    assert found
    assert ended.value.code == 2
    assert int(found[1]) >= 20
    assert str(tmp_path) not in said
    assert "hunter2" not in said
    assert said == snapshot("check.txt", said)
