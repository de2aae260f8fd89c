"""A deployment in small, made on the spot: public sources, a corpus, a task with all its files."""

import json
import random
from pathlib import Path
from typing import NamedTuple

from gateway.adapters.prefilter.network import Network, Shape
from gateway.adapters.prefilter.reading import Alphabet, Reader, packed
from gateway.adapters.prefilter.weights import Calibration, save_prefilter
from gateway.lab.evaluate import EvalConfig
from gateway.lab.rows import MARKETPLACE_DEV, Row, write_rows
from gateway.lab.train_cnn import CnnConfig

GOOD = (
    "the tap drips",
    "come on Tuesday",
    "paint the fence",
    "what does it cost",
    "thank you for the work",
    "bring a ladder",
)
BAD = ("pay me outside the app", "send the gift card code", "you worthless fool", "are you hiring", "earn quick money")
POLICY = ("off_platform", "spam_scam", "abuse", "job_seeking", "spam_scam")
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")

TASK = """
owner = "trust"
description = "small"
input = "input.schema.json"
output = "output.schema.json"
positive = "violation"

[[stage]]
name = "rules"
kind = "rules"
file = "rules.toml"
decides = ["violation"]

[[stage]]
name = "prefilter"
kind = "cnn"
weights = "prefilter.safetensors"
decides = ["clean"]
accept_below = 0.05

[[stage]]
name = "llm"
kind = "chain"
prompt = "small/classify.v1"
model = "tiny"
labels = { clean = "A", violation = "B" }
policies = { abuse = "C", spam_scam = "E", off_platform = "F", job_seeking = "H" }
calibration = "llm-calibration.json"
accept_above = 0.5
accept_below = 0.5
min_label_mass = 0.0

[actions]
clean = "deliver"
violation = "review"
deferred = "review"
"""
POLICIES = "".join(f'\n[policy.{p}]\nseverity = 2\ntext = "policies/{p}.md"\n' for p in sorted(set(POLICY)))
RULES = """
[[rule]]
name = "gift-card"
label = "violation"
policy = "spam_scam"
patterns = ['\\bgift card\\b']
"""
SYSTEM = """
owner = "trust"
description = "the previous system"
input = "-"
output = "-"
positive = "violation"

[[stage]]
name = "rules"
kind = "rules"
file = "rules.toml"
decides = ["violation"]

[[stage]]
name = "cnn"
kind = "cnn"
weights = "cnn.safetensors"
decides = ["violation"]
accept_above = 0.5

[actions]
clean = "deliver"
violation = "review"
deferred = "deliver"
"""
MODELS = """
[tiny]
kind = "tgi"
urls = ["http://127.0.0.1:9"]
model_id = "tiny"

[[tiny.price]]
from = 2026-01-01
input_per_million = "0.05"
output_per_million = "0.20"
"""


class World(NamedTuple):
    """Everything that an evaluation reads."""

    home: Path
    sources: Path
    corpus: Path
    data: Path
    readings: Path
    base: Path

    def evaluation(self, out: Path) -> EvalConfig:
        """Of the task `small` with the adapter beside the base model, into `out`."""
        return EvalConfig(
            home=self.home, task="small", data=self.data, out=out, base=self.base, readings=self.readings,
            adapter=self.base / "adapter",
        )  # fmt: skip


def message(bad: bool, rng: random.Random) -> tuple[str, str | None]:
    """A message and its policy."""
    which = rng.randrange(len(BAD if bad else GOOD))
    said = (BAD if bad else GOOD)[which]
    text = f"{rng.choice(NAMES)} {said} {rng.randrange(1000, 99999)} {rng.choice(NAMES)} {rng.random():.6f}"
    return text, POLICY[which] if bad else None


def rows(count: int, violations: float, source: str, seed: int, split: str = "test") -> list[Row]:
    """Labelled rows, alike but for their numbers."""
    rng = random.Random(f"{source}{seed}")
    made = []
    for i in range(count):
        bad = i < count * violations
        text, policy = message(bad, rng)
        kind = rng.choice(("obvious", "subtle", "obfuscated")) if bad else rng.choice(("hard_negative", "plain"))
        made.append(
            Row(
                id=f"{source}-{seed}-{i}", source=source, text=text, label="violation" if bad else "clean", split=split,  # type: ignore[arg-type]
                policy=policy, group=f"{i}", difficulty=kind if source == "marketplace" else None,
            )
        )  # fmt: skip
    return made


def write_sources(folder: Path, count: int = 240) -> Path:
    """Two public sources of violations, one of service talk, and the marketplace's development messages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, share in (("convabuse", 0.5), ("uci_sms_spam", 0.5), ("multidogo", 0.0)):
        made = rows(count, share, name, 1)
        lines = [
            {"id": r.id, "source": name, "text": r.text, "label": r.label, "policy": r.policy,
             "split": "test" if i % 4 == 0 else "train"}
            for i, r in enumerate(made)
        ]  # fmt: skip
        _gzip_lines(folder / f"{name}.jsonl.gz", lines)
    dev = [
        {"id": f"dev-{r.id}", "sender_role": "pro", "message": r.text, "label": r.label, "policy": r.policy,
         "difficulty": r.difficulty}
        for r in rows(60, 0.5, "marketplace", 3)
    ]  # fmt: skip
    (folder / MARKETPLACE_DEV).mkdir(exist_ok=True)
    (folder / MARKETPLACE_DEV / f"{MARKETPLACE_DEV}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in dev))
    return folder


def write_corpus(path: Path) -> Path:
    """Two writers; one of them is held out."""
    lines = [
        {"id": f"{hand}-{r.id}", "hand": hand, "sender_role": "pro", "message": r.text, "label": r.label,
         "policy": r.policy, "difficulty": r.difficulty, "mirrors": None}
        for hand in ("alder", "fir")
        for r in rows(80, 0.5, "marketplace", len(hand))
    ]  # fmt: skip
    _gzip_lines(path, lines)
    return path


def write_home(home: Path) -> Path:
    """models.toml, one prompt, and the task `small` without weights."""
    task = home / "tasks" / "small"
    (task / "previous").mkdir(parents=True)
    (task / "policies").mkdir()
    (home / "prompts" / "small").mkdir(parents=True)
    (home / "models.toml").write_text(MODELS)
    (home / "prompts" / "small" / "classify.v1.md").write_text("Answer A or B.\n---\n{{sender_role}}: {{message}}\n")
    for i in (1, 2, 3):
        text = f"Fine or not ({i})?\n---\n{{{{sender_role}}}}: {{{{message}}}}\n"
        (home / "prompts" / "small" / f"prompted.v{i}.md").write_text(text)
    (task / "task.toml").write_text(TASK + POLICIES)
    for policy in set(POLICY):
        (task / "policies" / f"{policy}.md").write_text(policy)
    schema = {"type": "object", "properties": {"message": {"type": "string"}, "sender_role": {"type": "string"}}}
    (task / "input.schema.json").write_text(json.dumps(schema))
    (task / "output.schema.json").write_text("{}")
    (task / "rules.toml").write_text(RULES)
    (task / "llm-calibration.json").write_text('{"method": "platt", "a": 1.0, "b": 0.0}')
    (task / "previous" / "rules.toml").write_text(RULES.replace('policy = "spam_scam"\n', ""))
    (task / "previous" / "system.toml").write_text(SYSTEM)
    return home


def cnn_config(sources: Path, corpus: Path, out: Path) -> CnnConfig:
    """Small enough to learn these phrases in seconds."""
    return CnnConfig(
        sources=str(sources), corpus=str(corpus), out=str(out), epochs=3, learning_rate=0.01, table_rate=0.01,
        lexicon=200, buckets=64, dropout_words=0.0, dropout_features=0.0, batch=16,
        shape={"word_dim": 16, "word_filters": 16, "byte_dim": 4, "byte_filters": 4, "hidden": 16},
    )  # fmt: skip


def write_frozen(path: Path, count: int = 160) -> Path:
    """A labelled set of three sources, an eighth violations."""
    made = [r for s in ("convabuse", "uci_sms_spam", "marketplace") for r in rows(count // 3, 0.25, s, 9)]
    write_rows(path, [*made, *rows(count // 2, 0.0, "multidogo", 9)])
    return path


def _gzip_lines(path: Path, lines: list[dict[str, object]]) -> None:
    import gzip

    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def untrained_prefilter(config: CnnConfig, folder: Path) -> None:
    """A prefilter that loads and knows nothing."""
    alphabet = Alphabet(
        max_bytes=256, max_words=64, buckets=8, shortest_group=3, longest_group=5, lexicon=packed(["the", "a"])
    )
    shape = Shape(table_rows=Reader(alphabet).table_rows, **config.shape)  # type: ignore[arg-type]
    calibration = Calibration(a=1.0, b=0.0, fitted_share=0.5, deployed_share=0.015)
    save_prefilter(folder / "prefilter.safetensors", Network(shape), alphabet, calibration, {})
