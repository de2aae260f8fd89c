"""Fine-tune a causal LM with LoRA so that its first answer token is the label. Resumable, deterministic by seed.

The prompt's leading tokens are the same in every row, so each step runs them once, in a batch of one with gradients,
and the rows go on from their keys and values: exactly the same loss and gradients at about a third of the cost.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy

from gateway.adapters import causal_lm
from gateway.lab.encode import AnswerTokens, Batch, Example, batches, collate, common_prefix
from gateway.lab.rows import LabError

CHECKPOINT = "checkpoint.pt"
_LOG = "log.jsonl"


class TuneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shapes the weights. `from_layer` is the first block with LoRA; `max_tokens` bounds rows x padded length."""

    base_name: str = "SmolLM2-135M-Instruct"
    rank: int = 16
    alpha: int = 32
    from_layer: int = 15
    learning_rate: float = 1e-3
    warmup: float = 0.04
    weight_decay: float = 0.0
    clip: float = 1.0
    detail_weight: float = 0.3
    max_tokens: int = 1024
    epochs: int = 1
    seed: int = 20240611
    dtype: str = "auto"
    threads: int = 1
    checkpoint_every_s: float = 240
    validate_every_s: float = 600


class Progressed(NamedTuple):
    """Where a run stands: optimizer steps done, and the running mean of the loss."""

    step: int
    loss: float


Validate = Callable[[torch.nn.Module], Mapping[str, float]]


class MasterAdamW:
    """AdamW on float32 copies of low-precision weights: bfloat16 alone would round small updates away."""

    def __init__(self, weights: Sequence[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.weights = list(weights)
        self.masters = [w.detach().float().clone().requires_grad_() for w in self.weights]
        self.adam = torch.optim.AdamW(self.masters, lr=learning_rate, weight_decay=weight_decay)

    def step(self, learning_rate: float, clip: float) -> float:
        """One update from the gradients of the weights, clipped to norm `clip`; returns the norm before clipping."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, clip))
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        if math.isfinite(norm):
            self.adam.step()
        self._publish()
        return norm

    def state(self) -> dict[str, Any]:
        """Tensors and numbers to put in a checkpoint."""
        return {"masters": [m.detach() for m in self.masters], "adam": self.adam.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back a `state`. Raises LabError if it belongs to other weights."""
        shapes = [tuple(m.shape) for m in state["masters"]]
        if shapes != [tuple(m.shape) for m in self.masters]:
            raise LabError("the checkpoint's weights have other shapes: it is of another model or rank")
        with torch.no_grad():
            for mine, saved in zip(self.masters, state["masters"], strict=True):
                mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)


def tune(
    config: TuneConfig,
    base: Path,
    examples: Sequence[Example],
    out: Path,
    facts: Mapping[str, Any],
    validate: Validate,
    start: Path | None = None,
) -> Path:
    """Train, or go on from the checkpoint in `out`; returns the folder of the finished adapter, `out`/adapter.

    `facts` (data hashes, counts) are written beside the weights and must be those of the checkpoint. `start` is an
    adapter whose weights are the first ones; its hash joins the facts. Raises LabError, ModelFilesError.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    dtype = causal_lm.pick_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    tuned = causal_lm.add_lora(causal_lm.load_base(base, dtype), config.rank, config.alpha, config.from_layer)
    if start is not None:
        facts = {**facts, "started_from_sha256": causal_lm.copy_adapter(tuned, start, config.base_name)}
    seconds = _train(config, tuned, examples, out, facts, validate)
    return export(tuned, out / "adapter", config, facts, dict(validate(tuned)), seconds)


def export(
    tuned: Any, folder: Path, config: TuneConfig, facts: Mapping[str, Any], metrics: Mapping[str, float], seconds: float
) -> Path:
    """The adapter in peft's format with its `training.json`. `seconds` is what training took, stops not counted."""
    causal_lm.save_adapter(tuned, folder, config.base_name)
    training = {
        "config": msgspec.to_builtins(config), "facts": facts, "validation": metrics, "seconds": round(seconds),
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(training, indent=2, sort_keys=True) + "\n")
    return folder


def export_checkpoint(base: Path, out: Path, folder: Path) -> Path:
    """The adapter as it stands in the last checkpoint of run folder `out`, which may go on or have been stopped.

    Config and facts are those of the checkpoint; `training.json` says how many steps of how many it has seen.
    """
    state = _read_checkpoint(out / CHECKPOINT)
    identity = state["identity"]
    config = msgspec.convert(identity["config"], TuneConfig)
    tuned = causal_lm.add_lora(causal_lm.load_base(base), config.rank, config.alpha, config.from_layer)
    MasterAdamW(_trainable(tuned), config.learning_rate, config.weight_decay).restore(state["optimizer"])
    facts = {**identity["facts"], "steps": state["step"], "steps_planned": identity["steps"]}
    return export(tuned, folder, config, facts, state["validation"], state["seconds"])


def loss_of(model: torch.nn.Module, prefix: Sequence[int], batch: Batch, detail_weight: float) -> torch.Tensor:
    """Cross entropy of the label token plus `detail_weight` times that of the second token, summed over the rows."""
    cache = causal_lm.prefix_cache(model, prefix, len(batch.ids))
    logits = causal_lm.logits_at(model, cache, batch.ids, batch.at)
    losses = cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=-100, reduction="none")
    return losses[:, 0].sum() + detail_weight * losses[:, 1:].sum()


def label_margins(
    model: torch.nn.Module, examples: Sequence[Example], tokens: AnswerTokens, positive: str, max_tokens: int = 2048
) -> list[float]:
    """Log-odds of the positive label against the likeliest other one, per example, at the first answer position."""
    logits = label_logits(model, examples, tokens, max_tokens)
    at = list(tokens.labels).index(positive)
    rest = [i for i in range(len(tokens.labels)) if i != at]
    margins: list[float] = (logits[:, at] - logits[:, rest].amax(1)).tolist()
    return margins


@torch.no_grad()
def label_logits(
    model: torch.nn.Module, examples: Sequence[Example], tokens: AnswerTokens, max_tokens: int = 2048
) -> torch.Tensor:
    """Logits (N, labels) of the label tokens at the first answer position, labels in the order of `tokens.labels`."""
    prefix = common_prefix(examples)
    wanted = list(tokens.labels.values())
    found = torch.zeros(len(examples), len(wanted))
    for indices in batches(examples, len(prefix), max_tokens, None):
        batch = collate([examples[i] for i in indices], len(prefix))
        cache = causal_lm.prefix_cache(model, prefix, len(indices))
        found[indices] = causal_lm.logits_at(model, cache, batch.ids, batch.at[:, :1])[:, 0][:, wanted]
    return found


def learning_rate(config: TuneConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warmup = max(1, int(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _train(
    config: TuneConfig, tuned: Any, examples: Sequence[Example], out: Path, facts: Mapping[str, Any], validate: Validate
) -> float:
    """Returns the seconds that training took, in this run and in those that it goes on from."""
    prefix = common_prefix(examples)
    plan = [b for e in range(config.epochs) for b in batches(examples, len(prefix), config.max_tokens, config.seed + e)]
    rows_a_step = len(examples) * config.epochs / len(plan)
    optimizer = MasterAdamW(_trainable(tuned), config.learning_rate, config.weight_decay)
    identity = {"config": msgspec.to_builtins(config), "facts": dict(facts), "steps": len(plan)}
    step, validation, seconds = _resume(out, optimizer, identity)
    saved = validated = time.monotonic()
    began = saved - seconds
    mean = math.nan
    tuned.train()
    with _bar(len(plan)) as advance:
        while step < len(plan):
            batch = collate([examples[i] for i in plan[step]], len(prefix))
            loss = loss_of(tuned, prefix, batch, config.detail_weight) / rows_a_step
            loss.backward()  # type: ignore[no-untyped-call]
            norm = optimizer.step(learning_rate(config, step, len(plan)), config.clip)
            value = float(loss.detach()) * rows_a_step / len(plan[step])
            del loss  # the graph must go before the next forward pass: two at once do not fit
            mean = value if math.isnan(mean) else 0.98 * mean + 0.02 * value
            step += 1
            advance(step, mean)
            now = time.monotonic()
            if step % 10 == 0:
                _log(out, {"step": step, "of": len(plan), "loss": round(mean, 4), "norm": round(norm, 3)})
            if now - validated >= config.validate_every_s:
                validation = _validated(tuned, validate, out, step)
                validated = time.monotonic()
            if now - saved >= config.checkpoint_every_s or step == len(plan):
                _checkpoint(out, optimizer, identity, step, validation, now - began)
                saved = time.monotonic()
    tuned.eval()
    return time.monotonic() - began


def _validated(tuned: Any, validate: Validate, out: Path, step: int) -> dict[str, float]:
    tuned.eval()
    validation = dict(validate(tuned))
    tuned.train()
    _log(out, {"step": step, "validation": validation})
    return validation


def _trainable(tuned: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in tuned.parameters() if p.requires_grad]


def _checkpoint(
    out: Path,
    optimizer: MasterAdamW,
    identity: Mapping[str, Any],
    step: int,
    validation: Mapping[str, float],
    seconds: float,
) -> None:
    """Written beside and renamed: a stop while writing leaves the one before."""
    state = {
        "identity": dict(identity), "step": step, "optimizer": optimizer.state(), "validation": dict(validation),
        "seconds": seconds,
    }  # fmt: skip
    fresh = out / (CHECKPOINT + ".part")
    torch.save(state, fresh)
    os.replace(fresh, out / CHECKPOINT)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return {"seconds": 0.0, **state}
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as e:
        raise LabError(f"{path}: not a checkpoint of this trainer: {e}") from e


def _resume(out: Path, optimizer: MasterAdamW, identity: Mapping[str, Any]) -> tuple[int, dict[str, float], float]:
    """Steps done, the last validation, and the seconds spent so far."""
    if not (out / CHECKPOINT).exists():
        return 0, {}, 0.0
    state = _read_checkpoint(out / CHECKPOINT)
    if state["identity"] != identity:
        raise LabError(f"{out / CHECKPOINT}: begun with another config or other data; use another run folder")
    optimizer.restore(state["optimizer"])
    return int(state["step"]), dict(state["validation"]), float(state["seconds"])


def _log(out: Path, entry: Mapping[str, Any]) -> None:
    stamped = {"at": time.strftime("%H:%M:%S", time.gmtime()), **entry}
    with (out / _LOG).open("a") as file:
        file.write(json.dumps(stamped) + "\n")


@contextlib.contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    columns = (TextColumn("tune"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("tune", total=steps, loss=math.nan)
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)
