"""The model card: numbers come from the records, prose stays, and the committed card is what the command writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.__main__ import cli
from gateway.lab.card import BEGIN, END, FILE, LICENCES, write_card
from gateway.lab.reproduce import RESULTS
from gateway.lab.rows import LabError
from tests.lab.small_world import World

HOME = Path(__file__).parents[2]
TRAINING: dict[str, Any] = {
    "config": {
        "base_name": "tiny", "rank": 2, "alpha": 4, "from_layer": 1, "learning_rate": 0.1, "seed": 1, "epochs": 1,
    },
    "facts": {"prompt": "small/classify.v1", "data_sha256": "0" * 64, "rows_seen": {"convabuse/clean": 12345}},
    "validation": {},
    "seconds": 7200,
}  # fmt: skip
CALIBRATION = {"method": "platt", "a": 0.5, "b": -3.0, "fitted_at_prevalence": 0.015, "rows_sha256": "1" * 64}


def test_the_committed_card_is_what_the_command_writes(tmp_path: Path) -> None:
    """Of the shipped task: whoever changes weights, thresholds or results has to run `gateway lab card`."""
    committed = HOME / "tasks" / "message-moderation"
    shutil.copytree(committed, tmp_path / "tasks" / "message-moderation")
    found = CliRunner().invoke(cli, ["lab", "card"], env={"GATEWAY_HOME": str(tmp_path)})
    assert found.exit_code == 0, found.output
    assert (tmp_path / "tasks" / "message-moderation" / FILE).read_text() == (committed / FILE).read_text()


def test_every_licence_is_that_of_the_notice() -> None:
    """A source's entry in NOTICE names the licence that the card gives."""
    notice = (HOME / "NOTICE").read_text()
    for source, licence in LICENCES.items():
        if licence != "project":
            entry = notice[notice.index(source if source != "nlupp" else "banking77, nlupp") :]
            assert licence in entry[:200].replace("CC BY 4.0 / 3.0", "")


@pytest.fixture
def folder(world: World, run: Path, tmp_path: Path) -> Path:
    """The small task with records of a training and one result."""
    folder = tmp_path / "home/tasks/small"
    shutil.copytree(world.home, tmp_path / "home")
    shutil.copytree(world.base / "adapter", folder / "adapter")
    (folder / "adapter" / "training.json").write_text(json.dumps(TRAINING))
    (folder / "llm-calibration.json").write_text(json.dumps(CALIBRATION))
    (folder / RESULTS).mkdir()
    shutil.copy(run / "metrics.json", folder / RESULTS / "eval-1000.json")
    (folder / FILE).write_text(f"# Ours\n\n{BEGIN}\nold numbers\n{END}\n\nThe end.\n")
    return folder


def test_prose_stays_and_numbers_are_renewed(folder: Path) -> None:
    """What stands outside the markers is kept; inside are data, training, calibration and every result's intervals."""
    text = write_card(folder).read_text()
    assert text.startswith("# Ours\n")
    assert text.endswith(f"{END}\n\nThe end.\n")
    assert "old numbers" not in text
    assert "| convabuse | CC BY 4.0 | 12345 |" in text
    assert "| minutes on one core | 120 |" in text
    auc = json.loads((folder / RESULTS / "eval-1000.json").read_text())["systems"]["tuned"]["auc"]
    assert f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in text
    assert write_card(folder).read_text() == text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (FILE, "no markers", "needs the lines"),
        (FILE, None, "write what the models are for"),
        ("adapter/training.json", None, "training.json"),
        ("llm-calibration.json", "{", "llm-calibration.json"),
        ("llm-calibration.json", "{}", "lacks 'a'"),
    ],
)
def test_a_card_that_cannot_be_written_is_left_alone(folder: Path, name: str, content: str | None, says: str) -> None:
    """Without records or markers: an error that names the file, and the card as it was."""
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    before = (folder / FILE).read_bytes() if (folder / FILE).exists() else None
    with pytest.raises(LabError, match=says):
        write_card(folder)
    assert ((folder / FILE).read_bytes() if (folder / FILE).exists() else None) == before
