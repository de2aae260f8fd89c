"""Every lab command, through the command line, on generated data with tiny models."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.lab import lab
from tests.lab import small_world

HOME = Path(__file__).parents[2]


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
    return folder


@pytest.mark.timeout(300)
def test_the_whole_lab_from_sources_to_report(home: Path, tmp_path: Path, tiny_llm_folder: Path) -> None:
    """Data, training, tuning, calibration, evaluation, simulation, attack, loso, curve and export all end well."""
    sources = ("--sources", tmp_path / "sources", "--corpus", tmp_path / "corpus.jsonl.gz")
    base, task = ("--base", tiny_llm_folder), ("--task", "small")
    kept = ("--readings", tmp_path / "readings")
    quick = ("--epochs", 5, "--learning-rate", 0.01, "--batch", 16)
    folder = home / "tasks" / "small"

    def ok(*words: object) -> str:
        result = run(home, *words)
        assert result.exit_code == 0, f"{words[0]}: {result.output}"
        return result.output

    ok("data", *sources, "--out", tmp_path / "data")
    ok("train-cnn", *sources, *quick, "--out", tmp_path / "cnn")
    for name in ("prefilter.safetensors", "prefilter.json"):
        shutil.copy(tmp_path / "cnn" / name, folder)
    (tmp_path / "mix.toml").write_text("corpus_passes = 2\nper_label = { convabuse = 30 }\n")
    tuning = (*sources, *base, "--mix", tmp_path / "mix.toml", "--learning-rate", 0.02)
    ok("tune-llm", *tuning, "--out", tmp_path / "first")
    ok("tune-llm", *tuning, "--from-adapter", tmp_path / "first" / "adapter", "--out", tmp_path / "llm")
    tuned = ("--adapter", tmp_path / "llm" / "adapter")
    ok("calibrate", *task, *sources, *base, *tuned, *kept, "--recall", 0.5)
    calibration = json.loads((folder / "llm-calibration.json").read_text())
    assert calibration["fitted_at_prevalence"] == 0.015
    without = ("--without", "previous", "--without", "prompted")
    ok("eval", *task, *base, *tuned, *kept, *without, "--data", tmp_path / "eval.jsonl.gz", "--out", tmp_path / "run")
    assert "## The cascade" in (tmp_path / "run" / "report.md").read_text()
    assert "cascade" in ok("simulate", *task, "--run", tmp_path / "run", "--recall", 0.5)
    (tmp_path / "suite.jsonl").write_text(
        '{"id":"a","function":"f","group":"functional","sender_role":"pro","message":"are you hiring",'
        '"label":"violation","policy":"job_seeking"}\n'
    )
    ok("pack-suite", tmp_path / "suite.jsonl", "--out", folder / "suite.jsonl.gz")
    ok("attack", *task, *base, *tuned, *kept, "--out", tmp_path / "attack")
    ok("loso", *sources, *quick, "--out", tmp_path / "loso")
    assert set(json.loads((tmp_path / "loso" / "loso.json").read_text())) == {"convabuse", "uci_sms_spam"}
    again = (tmp_path / "loso" / "all" / "prefilter.safetensors").stat().st_mtime_ns
    ok("loso", *sources, *quick, "--out", tmp_path / "loso")
    assert (tmp_path / "loso" / "all" / "prefilter.safetensors").stat().st_mtime_ns == again
    points = ("--size", 32, "--data", tmp_path / "eval.jsonl.gz")
    ok("curve", *sources, *base, *points, "--out", tmp_path / "curve")
    assert json.loads((tmp_path / "curve" / "curve.json").read_text())[0][0] == 32
    ok("export", *task, *base, *tuned, "--out", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data", "--sources", "nowhere", "--out", "x"), "no folder of public sources at nowhere"),
        (("eval", "--base", ".", "--data", "absent.csv", "--out", "x", "--task", "small"), "absent.csv"),
        (("simulate", "--task", "small", "--run", "absent", "--recall", "0.9"), "absent/predictions.jsonl"),
    ],
)
def test_what_cannot_be_used_ends_with_status_2_and_no_traceback(
    home: Path, tmp_path: Path, words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is on one line, the status is 2, and no run folder is left."""
    run_cnn = small_world.cnn_config(tmp_path / "sources", tmp_path / "corpus.jsonl.gz", tmp_path / "cnn")
    small_world.untrained_prefilter(run_cnn, home / "tasks" / "small")
    monkeypatch.chdir(tmp_path)
    result = run(home, *words)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()
