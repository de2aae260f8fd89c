"""`lab export`: base and adapter merged into one plain folder that TGI, vLLM and transformers load; then checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from msgspec import structs

from gateway.adapters import causal_lm
from gateway.lab.readings import read_anew, row_key
from gateway.lab.rows import LabError, Row
from gateway.lab.run_folder import run_folder
from gateway.lab.systems import Loaded

_PROBE = "From: customer\nMessage: can you come on Tuesday?"
_TOLERANCE = 0.05


class Rounding(NamedTuple):
    """What bfloat16 and merging do to calibrated scores: mean and largest difference, and decisions that change."""

    rows: int
    mean: float
    largest: float
    decisions: int


def export_merged(base: Path, adapter: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> float:
    """Write `out` whole or not at all; returns the largest difference of a logit between adapter and merged folder.

    Raises LabError where the folder that was written does not say what the adapter says.
    """
    try:
        tokenizer = causal_lm.load_tokenizer(base)
        tuned = causal_lm.load_adapter(causal_lm.load_base(base), adapter, merge=False)
        said = _logits(tuned, tokenizer)
        merged = causal_lm.load_adapter(causal_lm.load_base(base), adapter, merge=True)
        with run_folder(out) as folder:
            merged.to(dtype).save_pretrained(folder)  # type: ignore[operator]
            tokenizer.save_pretrained(folder)
            gap = float((_logits(causal_lm.load_base(folder), tokenizer) - said).abs().max())
            if not gap <= _TOLERANCE * float(said.abs().max()):
                raise LabError(
                    f"{out}: the merged model differs from the adapter by {gap:.3f} in a logit; nothing was kept"
                )
    except causal_lm.ModelFilesError as error:
        raise LabError(str(error)) from error
    return gap


def rounding(
    loaded: Loaded, base: Path, adapter: Path, merged: Path, rows: Sequence[Row], *, threads: int = 1
) -> Rounding:
    """The task's calibrated scores by the adapter on the base in float32, against those of the merged folder as it
    lies on disk. Raises LabError.
    """
    exact = loaded.asked(base, adapter)
    before = read_anew(exact, rows, torch.float32, threads=threads)
    after = read_anew(structs.replace(exact, base=merged, adapter=None), rows, torch.bfloat16, threads=threads)
    platt, above = loaded.platt(), loaded.chain.accept_above or 0.5
    scores = [
        np.array([platt.score(read[row_key(row)].margin(loaded.positive)) for row in rows]) for read in (before, after)
    ]
    gaps = np.abs(scores[0] - scores[1])
    changed = (scores[0] >= above) != (scores[1] >= above)
    return Rounding(len(rows), float(gaps.mean()), float(gaps.max()), int(changed.sum()))


@torch.inference_mode()
def _logits(model: torch.nn.Module, tokenizer: object) -> torch.Tensor:
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]])  # type: ignore[operator]
    found: torch.Tensor = model(input_ids=ids).logits[0, -1].float()
    return found
