"""`lab export`: base and adapter merged into one plain folder that TGI, vLLM and transformers load; then checked."""

from pathlib import Path

import torch

from gateway.adapters import causal_lm
from gateway.lab.rows import LabError
from gateway.lab.run_folder import run_folder

_PROBE = "From: customer\nMessage: can you come on Tuesday?"
_TOLERANCE = 0.05


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


@torch.inference_mode()
def _logits(model: torch.nn.Module, tokenizer: object) -> torch.Tensor:
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]])  # type: ignore[operator]
    found: torch.Tensor = model(input_ids=ids).logits[0, -1].float()
    return found
