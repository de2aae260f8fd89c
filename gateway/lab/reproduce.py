"""`lab reproduce`: frozen sets, evaluation and attack suite anew, compared with the committed results."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from gateway.lab.attack import attack
from gateway.lab.evaluate import METRICS, EvalConfig, evaluate
from gateway.lab.frozen import RECIPES, build_frozen
from gateway.lab.rows import LabError

RESULTS = "results"
TOLERANCE = 0.01
"""Batch sizes and processors move low-order bits of an LLM's log-probs, and with them a few decisions."""
_COMPARED = ("value", "f1", "routed_at_production", "partial_auc_10", "macro_pass_rate")


class Difference(NamedTuple):
    """A number that came out otherwise."""

    result: str
    number: str
    committed: float
    now: float


def reproduce(config: EvalConfig, sources: Path, corpus: Path) -> list[Difference]:
    """Write sets and results to `config.out`; returns every difference beyond the tolerance from the results in the
    task's folder. `config.data` is not used. Raises LabError where there is nothing to compare with.
    """
    committed = config.home / "tasks" / config.task / RESULTS
    if not committed.is_dir():
        raise LabError(f"{committed}: there are no committed results to compare with")
    build_frozen(sources, corpus, config.out / "data")
    differences: list[Difference] = []
    for name in RECIPES:
        run = config.out / name
        evaluate(structs.replace(config, data=config.out / "data" / f"{name}.jsonl.gz", out=run))
        differences += compare(name, _read(committed / f"{name}.json"), _read(run / METRICS))
    attack(config.home, config.task, config.out / "attack", config.base, config.readings, adapter=config.adapter)
    differences += compare("attack", _read(committed / "attack.json"), _read(config.out / "attack" / METRICS))
    return differences


def compare(result: str, committed: Any, now: Any, path: str = "") -> Iterator[Difference]:
    """Every estimate, wherever it stands, against the committed one; interval ends are not compared on their own."""
    if isinstance(committed, Mapping) and isinstance(now, Mapping):
        for key in committed:
            place = f"{path}.{key}" if path else key
            if key in _COMPARED and isinstance(committed[key], int | float):
                value = now.get(key)
                if not isinstance(value, int | float) or abs(value - committed[key]) > TOLERANCE:
                    yield Difference(result, place, committed[key], value if value is not None else float("nan"))
            elif key != "curves":
                yield from compare(result, committed[key], now.get(key), place)
    elif isinstance(committed, Mapping):
        yield Difference(result, path, committed.get("value", float("nan")), float("nan"))


def _read(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise LabError(f"{path}: {error}") from error
