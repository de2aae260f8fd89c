"""Every lab command, through the command line, on generated data with tiny models."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.__main__ import main
from gateway.cli.lab import lab
from gateway.lab.card import BEGIN, END
from tests.lab import small_world

HOME = Path(__file__).parents[2]
MIX = """
per_label = { convabuse = 12, uci_sms_spam = 12 }
service = { multidogo = 12 }
corpus_passes = 1
validation_per_label = 4
validation_marketplace = 8
"""
CASE = {
    "id": "a", "function": "f", "group": "functional", "sender_role": "pro", "message": "are you hiring",
    "label": "violation", "policy": "job_seeking",
}  # fmt: skip


def run(home: Path, *words: object) -> Result:
    """The command's result."""
    return CliRunner().invoke(lab, [str(word) for word in words], env={"GATEWAY_HOME": str(home)})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The small home, with the prompt that the adapter is tuned on."""
    folder = small_world.write_home(tmp_path / "home")
    prompts = folder / "prompts" / "message-moderation"
    prompts.mkdir()
    shutil.copy(HOME / "prompts/message-moderation/classify.v1.md", prompts)
    shutil.copy(HOME / "prompts/message-moderation/classify.v1.md", folder / "prompts" / "small")
    small_world.write_sources(tmp_path / "sources", 100)
    small_world.write_corpus(tmp_path / "corpus.jsonl.gz")
    small_world.write_frozen(tmp_path / "eval.jsonl.gz")
    written = gzip.decompress((tmp_path / "corpus.jsonl.gz").read_bytes()).decode().splitlines()
    for hand in ("alder", "fir"):
        lines = [line for line in written if json.loads(line)["hand"] == hand]
        (tmp_path / f"{hand}.jsonl").write_text("\n".join(lines))
    (tmp_path / "case.jsonl").write_text(json.dumps(CASE))
    (tmp_path / "own.csv").write_text("text,label,policy\n" + "where do I park,clean,\nyou fool,violation,abuse\n" * 6)
    (tmp_path / "mix.toml").write_text(MIX)
    card = folder / "tasks" / "small" / "MODEL_CARD.md"
    card.write_text(f"# Ours\n\n{BEGIN}\n{END}\n")
    return folder


@pytest.fixture
def base(tmp_path: Path, tiny_llm_folder: Path) -> Path:
    """The tiny LLM, with `Yes` and `No` as one token each in place of two bytes that no message has."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_llm_folder, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for byte, word in (("\u0100", "Yes"), ("\u0101", "No")):
        vocabulary[word] = vocabulary.pop(byte)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokenizer["added_tokens"].append({"id": vocabulary[word], "content": word, **plain})
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.timeout(600)
def test_the_whole_lab_from_sources_to_report(home: Path, tmp_path: Path, base: Path) -> None:
    """Every command ends well, in the order in which an engineer would use them, and leaves what it promises."""
    sources = ("--sources", tmp_path / "sources", "--corpus", tmp_path / "corpus.jsonl.gz")
    model, task, kept = ("--base", base), ("--task", "small"), ("--readings", tmp_path / "readings")
    quick = ("--epochs", 5, "--learning-rate", 0.01, "--batch", 16)
    mixed = ("--mix", tmp_path / "mix.toml")
    folder = home / "tasks" / "small"
    used: set[str] = set()

    def ok(command: str, *words: object) -> str:
        used.add(command)
        result = run(home, command, *words)
        assert result.exit_code == 0, f"{command}: {result.output}"
        return result.output

    ok("pack-corpus", tmp_path, "alder", "fir", "--out", tmp_path / "packed.jsonl.gz")
    ok("pack-suite", tmp_path / "case.jsonl", "--out", folder / "suite.jsonl.gz")
    ok("data", *sources, "--out", tmp_path / "data")
    own = ok("data", "--file", tmp_path / "own.csv", *sources, "--out", tmp_path / "beside")
    assert json.loads(own)[0]["by_policy"] == {"abuse": 6}
    ok("train-cnn", *sources, *quick, "--out", tmp_path / "cnn")
    for name in ("prefilter.safetensors", "prefilter.json"):
        shutil.copy(tmp_path / "cnn" / name, folder)
    ok("previous", *task, *sources, "--out", tmp_path / "previous")
    ok("prompted", *task, *sources, *model, *kept)
    tuning = (*sources, *model, *mixed, "--learning-rate", 0.02)
    ok("tune-llm", *tuning, "--out", tmp_path / "first")
    ok("tune-llm", *tuning, "--from-adapter", tmp_path / "first" / "adapter", "--out", tmp_path / "llm")
    shutil.copytree(tmp_path / "llm" / "adapter", folder / "adapter")
    taught = ("--teacher", folder / "adapter", "--teacher-rows", 50)
    ok("train-cnn", *task, *sources, *quick, *model, *kept, *taught, "--out", tmp_path / "distilled")
    ok("calibrate", *task, *sources, *model, *kept, "--recall", 0.5, "--hard-negative-fp", 0.9)
    assert json.loads((folder / "llm-calibration.json").read_text())["fitted_at_prevalence"] == 0.015
    tested = ("--data", tmp_path / "eval.jsonl.gz")
    ok("eval", *task, *model, *kept, *tested, "--out", tmp_path / "run")
    assert "## The cascade" in (tmp_path / "run" / "report.md").read_text()
    assert "cascade" in ok("simulate", *task, "--run", tmp_path / "run", "--recall", 0.5)
    ok("attack", *task, *model, *kept, "--out", tmp_path / "attack")
    again = (*task, *sources, *model, *kept, "--set", "eval-1000", "--out", tmp_path / "reproduced")
    ok("reproduce", *again, "--write")
    assert " 0 differ" in ok("reproduce", *again)
    ok("card", *task)
    assert "### eval-1000" in (folder / "MODEL_CARD.md").read_text()
    for system, options in (("cnn", quick), ("llm", (*model, *mixed))):
        ok("loso", *sources, *options, "--system", system, "--out", tmp_path / "loso")
        found = json.loads((tmp_path / "loso" / system / "loso.json").read_text())
        assert set(found) == {"convabuse", "uci_sms_spam"}
    trained = (tmp_path / "loso" / "cnn" / "all" / "prefilter.safetensors").stat().st_mtime_ns
    ok("loso", *sources, *quick, "--out", tmp_path / "loso")
    assert (tmp_path / "loso" / "cnn" / "all" / "prefilter.safetensors").stat().st_mtime_ns == trained
    ok("curve", *sources, *model, *mixed, "--size", 32, *tested, "--out", tmp_path / "curve")
    assert json.loads((tmp_path / "curve" / "curve.json").read_text())[0][0] == 32
    said = ok("export", *task, *model, *tested, "--rows", 20, "--out", tmp_path / "merged")
    assert "20 rows: calibrated scores in float32 and as exported differ by 0.0" in said
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert used == set(lab.commands)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data", "--sources", "nowhere", "--out", "x"), "no folder of public sources at nowhere"),
        (("eval", "--base", ".", "--data", "absent.csv", "--out", "x", "--task", "small"), "absent.csv"),
        (("pack-suite", "case.jsonl", "--out", "case.jsonl/x"), "case.jsonl"),
        (("simulate", "--task", "small", "--run", "absent", "--recall", "0.9"), "absent/predictions.jsonl"),
    ],
)
def test_what_cannot_be_used_ends_with_status_2_and_no_traceback(
    home: Path, tmp_path: Path, words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The reason is on one line, the status is 2, and no run folder is left."""
    run_cnn = small_world.cnn_config(tmp_path / "sources", tmp_path / "corpus.jsonl.gz", tmp_path / "cnn")
    small_world.untrained_prefilter(run_cnn, home / "tasks" / "small")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_HOME", str(home))
    monkeypatch.setattr("sys.argv", ["gateway", "lab", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_every_command_is_documented() -> None:
    """docs/lab.md has a row for each."""
    text = (HOME / "docs" / "lab.md").read_text()
    assert {name for name in lab.commands if f"| `lab {name}` |" in text} == set(lab.commands)
