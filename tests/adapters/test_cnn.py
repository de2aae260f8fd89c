"""The cnn stage: scores, micro-batches, what passes, what fails, and files that cannot be used."""

import asyncio
import base64
import hashlib
import json
import threading
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gateway.adapters.cnn import BATCH, CnnRunner, build_cnn
from gateway.adapters.prefilter.network import Network, Shape
from gateway.adapters.prefilter.reading import Alphabet, Reader, collate, packed
from gateway.adapters.prefilter.weights import Calibration, Prefilter, load_prefilter, save_prefilter, sidecar_of
from gateway.core.cascade import Finding, StageFailed
from gateway.core.loaded import StageFiles
from gateway.core.problems import InvalidConfig
from gateway.core.task import CnnStage, Task

ALPHABET = Alphabet(
    max_bytes=200,
    max_words=30,
    buckets=64,
    shortest_group=3,
    longest_group=4,
    lexicon=packed(["the", "tap", "drips", "please", "cash", "?", "."]),
)
CALIBRATION = Calibration(a=1.5, b=0.2, fitted_share=0.5, deployed_share=0.02)
BOMB = base64.b64encode(zlib.compress(b"a" * (1 << 23))).decode()
MESSAGES = ["the tap drips.", "please?", "c4sh", "", "wholly unheard-of vocabulary, " * 5, "x" * 200, "Привет 🙂"]


def small_network(seed: int = 1) -> Network:
    torch.manual_seed(seed)
    shape = Shape(
        table_rows=Reader(ALPHABET).table_rows, word_dim=8, word_filters=12, byte_dim=4, byte_filters=6, hidden=10
    )
    return Network(shape).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_prefilter(tmp_path / "prefilter.safetensors", small_network(), ALPHABET, CALIBRATION, {"seed": 1})
    return tmp_path


def build(folder: Path, **keys: str) -> CnnRunner:
    task = Task(owner="team", description="", input="", output="", stage=(), positive="violation")
    stage = CnnStage(name="prefilter", weights="prefilter.safetensors", accept_below=0.1, **keys)
    return build_cnn(stage, StageFiles("moderation", task, folder), "stage[1]")


async def find(runner: CnnRunner, message: object) -> Finding:
    return await runner.run({"message": message}, None)  # type: ignore[arg-type]


def test_scores_do_not_depend_on_the_batch() -> None:
    """A message scores the same alone, beside longer ones and beside many: padding is silent."""
    network, reader = small_network(), Reader(ALPHABET)
    readings = [r for r in map(reader.read, MESSAGES) if r is not None]
    assert len(readings) == len(MESSAGES)
    with torch.inference_mode():
        together = network(collate(readings))
        alone = torch.cat([network(collate([r])) for r in readings])
    assert torch.allclose(together, alone, atol=1e-5)
    assert len({round(x, 4) for x in alone.tolist()}) == len(MESSAGES)


async def test_stage_gives_the_calibrated_score_and_no_label(folder: Path) -> None:
    """The score is the calibrated probability of the network's logit; judging it is not the stage's."""
    runner, prefilter = build(folder), load_prefilter(folder / "prefilter.safetensors")
    reading = prefilter.reader.read("the tap drips.")
    assert reading is not None
    logit = prefilter.network(collate([reading])).item()
    finding = await find(runner, "the tap drips.")
    assert finding == Finding(score=pytest.approx(CALIBRATION.score(logit), rel=1e-5))


def test_prior_correction_moves_the_odds() -> None:
    """At the deployment's share of positives the odds are those of the fit times the ratio of the prior odds."""
    plain = Calibration(a=1.0, b=0.0, fitted_share=0.5, deployed_share=0.5)
    moved = Calibration(a=1.0, b=0.0, fitted_share=0.5, deployed_share=0.02)
    assert plain.score(0.0) == pytest.approx(0.5)
    assert moved.score(0.0) == pytest.approx(0.02)
    assert moved.score(-5000.0) == 0.0
    assert moved.score(5000.0) == 1.0


async def test_concurrent_messages_share_forward_passes(folder: Path) -> None:
    """What arrives together is scored together, at most a batch at a time, each with its own message's score."""
    runner = build(folder)
    alone = [(await find(runner, m)).score for m in MESSAGES]
    sizes: list[int] = []
    network = runner._prefilter.network
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0].bytes)))
    found = await asyncio.gather(*(find(runner, m) for m in MESSAGES * 10))
    assert [f.score for f in found] == pytest.approx(alone * 10, rel=1e-4)
    assert sum(sizes) == len(MESSAGES) * 10
    assert sizes[0] == BATCH == max(sizes)


async def test_large_batches_leave_the_event_loop_free(folder: Path) -> None:
    """A long forward pass runs in a thread of its own, a short one on the spot."""
    runner = build(folder)
    threads: list[str] = []
    runner._prefilter.network.register_forward_pre_hook(lambda *_: threads.append(threading.current_thread().name))
    await find(runner, "please?")
    await asyncio.gather(*(find(runner, "x" * 190) for _ in range(BATCH)))
    assert threads[0] == threading.current_thread().name
    assert threads[1].startswith("prefilter")


async def test_too_long_to_be_read_whole_passes(folder: Path) -> None:
    """Too many bytes or too many words: no score, so nothing can be cleared."""
    runner = build(folder)
    assert await find(runner, "x" * 201) == Finding(reason="input_too_long")
    assert await find(runner, "aa " * 31) == Finding(reason="input_too_long")
    assert (await find(runner, "aa " * 30)).score is not None


async def test_scores_that_are_no_numbers_fail_the_stage(folder: Path) -> None:
    """NaN is never a probability below a threshold: the stage fails."""
    runner = build(folder)
    with torch.no_grad():
        runner._prefilter.network.answer.bias.fill_(float("nan"))
    with pytest.raises(StageFailed, match="score_not_finite"):
        await find(runner, "please?")


async def test_an_error_in_a_pass_reaches_all_who_wait_and_no_one_after(folder: Path) -> None:
    """Every message of a broken batch fails at once; the next batch is scored."""
    runner = build(folder)

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = runner._prefilter.network.register_forward_pre_hook(broken)
    results = await asyncio.gather(*(find(runner, "x" * 150) for _ in range(5)), return_exceptions=True)
    assert [type(r) for r in results] == [StageFailed] * 5
    hook.remove()
    assert (await find(runner, "please?")).score is not None


async def test_cancelled_requests_do_not_disturb_the_batch(folder: Path) -> None:
    """Who went away is left out; who waits is answered."""
    runner = build(folder)
    tasks = [asyncio.create_task(find(runner, m)) for m in MESSAGES]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(r, Finding) for r in results[1:])


async def test_input_without_text_fails(folder: Path) -> None:
    """A field that is absent or no text is a failure, never a pass in silence."""
    with pytest.raises(StageFailed, match="no_text"):
        await find(build(folder), None)
    assert (await build(folder, text="body").run({"body": "please?"}, None)).score is not None  # type: ignore[arg-type]


def test_runner_serves_one_event_loop_after_another(folder: Path) -> None:
    """The lab runs the same stage in loops of its own."""
    runner = build(folder)
    first = asyncio.run(find(runner, "please?"))
    assert asyncio.run(find(runner, "please?")) == first


def spoil_truncated(folder: Path) -> None:
    path = folder / "prefilter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_other_weights(folder: Path) -> None:
    other = folder / "other.safetensors"
    save_prefilter(other, small_network(seed=2), ALPHABET, CALIBRATION, {})
    (folder / "prefilter.safetensors").write_bytes(other.read_bytes())


def spoil_sidecar(folder: Path, **keys: object) -> None:
    path = sidecar_of(folder / "prefilter.safetensors")
    document = json.loads(path.read_bytes())
    for key, value in keys.items():
        outer, _, inner = key.partition("__")
        (document[outer] if inner else document)[inner or outer] = value
    path.write_text(json.dumps(document))


def spoil_tensors(folder: Path) -> None:
    path = folder / "prefilter.safetensors"
    tensors = load_file(path)
    tensors.pop("answer.bias")
    resave(path, tensors)


def spoil_numbers(folder: Path) -> None:
    path = folder / "prefilter.safetensors"
    tensors = load_file(path)
    tensors["answer.bias"].fill_(float("inf"))
    resave(path, tensors)


def resave(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path)
    spoil_sidecar(path.parent, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (spoil_truncated, "prefilter.safetensors", "the sha256 is not the one in prefilter.json"),
        (spoil_other_weights, "prefilter.safetensors", "the sha256 is not the one in prefilter.json"),
        (spoil_tensors, "prefilter.safetensors", "these are not the tensors of word-and-byte-cnn/1"),
        (spoil_numbers, "prefilter.safetensors", "some weights are not finite numbers"),
        (lambda f: sidecar_of(f / "prefilter.safetensors").unlink(), "prefilter.json", "this file cannot be read"),
        (lambda f: spoil_sidecar(f, more=1), "prefilter.json", "this is no prefilter's description"),
        (lambda f: spoil_sidecar(f, shape__architecture="lstm/1"), "prefilter.json", "the architecture is `lstm/1`"),
        (lambda f: spoil_sidecar(f, shape__table_rows=9), "prefilter.json", "shape.table_rows is 9"),
        (lambda f: spoil_sidecar(f, alphabet__lexicon="AAAA"), "prefilter.json", "the lexicon is damaged"),
        (lambda f: spoil_sidecar(f, alphabet__lexicon=BOMB), "prefilter.json", "the lexicon is cut short, or has more"),
        (lambda f: spoil_sidecar(f, calibration__deployed_share=0), "prefilter.json", "a calibration share"),
    ],
)
def test_unusable_files_are_problems_with_a_hint(folder: Path, spoil: object, file: str, message: str) -> None:
    """Damaged, mixed-up or foreign files are named, and nothing in them is run."""
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(InvalidConfig) as caught:
        build(folder)
    (problem,) = caught.value.problems
    assert problem.file == f"tasks/moderation/{file}"
    assert problem.message.startswith(message)
    assert problem.hint


def test_half_precision_keeps_the_scores(folder: Path) -> None:
    """What is saved scores like what was trained, to a thousandth."""
    network, loaded = small_network(), load_prefilter(folder / "prefilter.safetensors")
    assert isinstance(loaded, Prefilter)
    readings = [r for r in map(loaded.reader.read, MESSAGES) if r is not None]
    with torch.inference_mode():
        assert torch.allclose(network(collate(readings)), loaded.network(collate(readings)), atol=1e-3)
