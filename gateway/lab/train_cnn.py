"""Training the prefilter: a run folder with the weights, their sidecar and metrics.json."""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from rich.progress import Progress
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]
from torch import Tensor, nn

from gateway.adapters.prefilter.network import Dropout, Network, Shape
from gateway.adapters.prefilter.reading import Alphabet, Batch, Reader, collate, packed
from gateway.adapters.prefilter.weights import Calibration, save_prefilter
from gateway.lab.calibrate import fit_platt
from gateway.lab.cnn_batches import POLICIES, POSITIVE, WINDOW, Changer, batches
from gateway.lab.cnn_mix import CnnMixConfig, Pools, draw_epoch, is_own, read_pools, shares
from gateway.lab.lexicon import choose_words, first_table
from gateway.lab.rows import SERVICE_SOURCES, LabError, Row, rows_hash
from gateway.lab.run_folder import run_folder

WEIGHTS = "prefilter.safetensors"
_SCORED = 64
_TOP = 1e9
"""Stands for the score of a text that was not read: it is passed on, whatever the threshold."""


class CnnConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run. `base` is a plain model folder whose input embeddings give the words their first vectors."""

    sources: str | None
    corpus: str
    out: str
    base: str | None = None
    epochs: int = 6
    batch: int = 64
    learning_rate: float = 1.2e-3
    table_rate: float = 2e-4
    weight_decay: float = 0.02
    policy_weight: float = 0.3
    lexicon: int = 11000
    least_texts: int = 3
    buckets: int = 4000
    max_bytes: int = 1024
    max_words: int = 256
    shape: dict[str, int] = {}
    spelled_words: float = 0.08
    kindred_words: float = 0.25
    dropout_words: float = 0.1
    dropout_features: float = 0.4
    averaging: float = 0.998
    deployed_share: float = 0.015
    threads: int = 1
    seed: int = 20240612
    mix: CnnMixConfig = CnnMixConfig()


class Teacher(Protocol):
    """A better model, whose opinion of a row is learnt in place of the bare label."""

    def targets(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """In [0, 1] by id, of as many of the rows as it has an opinion of."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What to record of it."""
        ...


def train_cnn(config: CnnConfig, teacher: Teacher | None = None) -> Path:
    """Train, calibrate and save; returns the run folder. The same files, configuration and threads give the same run.

    Raises LabError where the data cannot be used. An existing run folder is replaced only by a finished run.
    """
    torch.set_num_threads(config.threads)
    start_s = time.monotonic()
    pools = read_pools(_path(config.sources), Path(config.corpus), config.mix)
    _refuse_one_sided(pools)
    network, reader, aid = _fresh(config, pools)
    taught = {} if teacher is None else teacher.targets([row for rows in pools.train.values() for row in rows])
    history = _fit(config, pools, network, reader, aid, taught)
    calibration = _calibrate(config, pools, network, reader)
    facts: dict[str, Any] = {
        "config": msgspec.to_builtins(config),
        "data_sha256": pools.data_hash,
        "rows": pools.counts(),
        "platt_rows": shares(pools.platt),
        "platt_sha256": rows_hash(pools.platt),
        "absent_sources": list(pools.absent),
        "teacher": None if teacher is None else {**teacher.facts(), "rows": len(taught)},
    }
    watched = watch(pools.watched, logits(network, reader, [r.text for r in pools.watched]))
    training = {key: facts[key] for key in ("data_sha256", "rows", "platt_sha256", "absent_sources", "teacher")} | {
        "seed": config.seed
    }
    metrics = facts | {"epochs": history, "watched": watched, "seconds": round(time.monotonic() - start_s)}
    with run_folder(Path(config.out)) as folder:
        save_prefilter(folder / WEIGHTS, network, reader.alphabet, calibration, training)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    return Path(config.out)


def logits(network: Network, reader: Reader, texts: Sequence[str]) -> list[float]:
    """One logit a text, in order. A text that the network does not read whole is NaN: it has no score."""
    readings = [reader.read(text) for text in texts]
    whole = sorted(((len(r.bytes), i, r) for i, r in enumerate(readings) if r is not None), key=lambda entry: entry[:2])
    found = [math.nan] * len(texts)
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(whole), _SCORED):
            part = whole[start : start + _SCORED]
            for (_, i, _), logit in zip(part, network(collate([r for *_, r in part])).tolist(), strict=True):
                found[i] = logit
    return found


def watch(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, float]:
    """What matters of a prefilter: of service talk, the share that it would pass on while 95 and 98 % of the
    marketplace's violations are passed on. Rows without a score are passed on, too."""
    scored = [(row, _TOP if math.isnan(s) else s) for row, s in zip(rows, scores, strict=True)]
    groups = {source: [(r, s) for r, s in scored if r.source == source] for source in {r.source for r in rows}}
    talk = [s for r, s in scored if r.source in SERVICE_SOURCES]
    found: dict[str, float] = {}
    for source, pairs in sorted(groups.items()):
        bad = sorted(s for r, s in pairs if r.label == POSITIVE)
        clean = [s for r, s in pairs if r.label != POSITIVE]
        if not bad or not clean:
            continue
        found[f"auc/{source}"] = float(roc_auc_score([r.label == POSITIVE for r, _ in pairs], [x for _, x in pairs]))
        for recall in (0.95, 0.98):
            threshold = bad[math.floor((1 - recall) * len(bad))]
            name = f"routed_at_{recall:.2f}/{source}"
            found[f"{name}/own_clean"] = sum(s >= threshold for s in clean) / len(clean)
            if talk and is_own(pairs[0][0]):
                found[f"{name}/service_talk"] = sum(s >= threshold for s in talk) / len(talk)
    return {name: round(value, 4) for name, value in found.items()}


def _fresh(config: CnnConfig, pools: Pools) -> tuple[Network, Reader, nn.Linear]:
    """An untrained network, its reader, and a second head that learns the policy and is thrown away."""
    base = _path(config.base)
    texts = (row.text for rows in pools.train.values() for row in rows)
    words = choose_words(texts, base, config.lexicon, config.least_texts)
    alphabet = Alphabet(
        max_bytes=config.max_bytes, max_words=config.max_words, buckets=config.buckets, shortest_group=3,
        longest_group=5, lexicon=packed(words),
    )  # fmt: skip
    reader = Reader(alphabet)
    shape = msgspec.convert({**config.shape, "table_rows": reader.table_rows}, Shape)
    torch.manual_seed(config.seed)
    network = Network(shape, Dropout(config.dropout_words, config.dropout_features))
    aid = nn.Linear(shape.hidden, len(POLICIES))
    network.table.weight.data.copy_(first_table(alphabet, shape.word_dim, base, config.seed))
    return network, reader, aid


def _fit(
    config: CnnConfig, pools: Pools, network: Network, reader: Reader, aid: nn.Linear, taught: Mapping[str, float]
) -> list[dict[str, float]]:
    """Train for all epochs, leaving the network with its weights averaged over the last steps.

    Returns the mean loss and the watched rows' numbers of each epoch.
    """
    torch.manual_seed(config.seed)
    history: list[dict[str, float]] = []
    with Progress() as progress:
        bar = progress.add_task("training the prefilter")
        drawn = len(draw_epoch(pools, config.mix, 0))
        per_epoch = math.ceil(drawn / config.batch) + math.ceil(drawn / WINDOW)  # a window's last batch may be short
        optimizer, schedule = _optimizer(config, network, aid, per_epoch * config.epochs)
        kindred = config.kindred_words if config.base else 0.0
        changer = Changer(reader, network.table.weight.detach(), config.spelled_words, kindred)
        average = _Average(network, config.averaging)
        progress.update(bar, total=per_epoch * config.epochs)
        for epoch in range(config.epochs):
            network.train()
            losses = []
            drawn_rows = draw_epoch(pools, config.mix, epoch)
            for batch, target, policy in batches(drawn_rows, changer, config.batch, config.seed + epoch, taught):
                loss = _loss(config, network, aid, batch, target, policy)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                average.follow(network)
                losses.append(float(loss.detach()))
                progress.advance(bar)
            seen = watch(pools.watched, logits(average.network, reader, [r.text for r in pools.watched]))
            history.append({"loss": round(sum(losses) / len(losses), 4), **seen})
            progress.update(bar, completed=per_epoch * (epoch + 1), description=f"loss {history[-1]['loss']:.3f}")
    network.load_state_dict(average.network.state_dict())
    return history


class _Average:
    """Weights averaged exponentially over the steps: steadier than those of any one step."""

    def __init__(self, network: Network, keep: float) -> None:
        self.network = copy.deepcopy(network)
        self._keep = keep
        self._steps = 0

    @torch.no_grad()
    def follow(self, network: Network) -> None:
        """Take in the weights of a step; the first ones weigh no more than the last."""
        self._steps += 1
        share = max(1 - self._keep, 1 / self._steps)
        for mine, current in zip(self.network.parameters(), network.parameters(), strict=True):
            mine.lerp_(current, share)


def _optimizer(
    config: CnnConfig, network: Network, aid: nn.Linear, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW with a rate of its own for the table, whose first vectors are worth keeping; one cycle of rates."""
    rest = [p for name, p in network.named_parameters() if name != "table.weight"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [*rest, *aid.parameters()], "lr": config.learning_rate},
            {"params": [network.table.weight], "lr": config.table_rate, "weight_decay": 0.0},
        ],
        weight_decay=config.weight_decay,
    )
    rates = [config.learning_rate, config.table_rate]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=0.15)


def _loss(config: CnnConfig, network: Network, aid: nn.Linear, batch: Batch, target: Tensor, policy: Tensor) -> Tensor:
    features = network.features(batch)
    loss = nn.functional.binary_cross_entropy_with_logits(network.answer(features).squeeze(1), target)
    if bool((policy >= 0).any()):
        loss = loss + config.policy_weight * nn.functional.cross_entropy(aid(features), policy, ignore_index=-1)
    return loss


def _calibrate(config: CnnConfig, pools: Pools, network: Network, reader: Reader) -> Calibration:
    rows = pools.platt
    pairs = [
        (s, r.label == POSITIVE)
        for r, s in zip(rows, logits(network, reader, [r.text for r in rows]), strict=True)
        if not math.isnan(s)
    ]
    platt = fit_platt([s for s, _ in pairs], [t for _, t in pairs])
    return Calibration(a=platt.a, b=platt.b, fitted_share=platt.share, deployed_share=config.deployed_share)


def _refuse_one_sided(pools: Pools) -> None:
    for what, labels in (
        ("training", {label for (_, label), rows in pools.train.items() if rows}),
        ("calibration", {row.label for row in pools.platt}),
    ):
        if len(labels) < 2:
            raise LabError(f"the {what} rows are all of one label; absent sources: {', '.join(pools.absent) or 'none'}")


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
