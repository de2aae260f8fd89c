"""The one door to transformers and peft: causal language models, LoRA adapters, and scoring behind a shared prefix.

Shapes: B rows, T tokens a row, V vocabulary entries. Every fault of the libraries leaves here as `ModelFilesError`.
Sources: transformers' GGUF loading and `DynamicCache` documentation; peft's LoRA guide.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from gateway.core.problems import Unusable

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SHAPING = ("base_model_name_or_path", "r", "lora_alpha", "layers_to_transform", "target_modules")
"""What two adapters must share, for the one to begin with the other's weights."""


class ModelFilesError(Unusable):
    """A model folder or an adapter folder that cannot be loaded; the text names the folder and the reason."""


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        raise ModelFilesError(f"{folder}: {_one_line(e)}") from e


def _one_line(error: Exception) -> str:
    """torch names every weight that does not fit, a line each: the first one tells."""
    said, *weights = str(error).splitlines() or [type(error).__name__]
    more = f" (and {len(weights) - 1} more)" if len(weights) > 1 else ""
    return " ".join([said, *(weight.strip() for weight in weights[:1])]) + more


def pick_dtype() -> torch.dtype:
    """bfloat16 where the CPU multiplies it natively (AVX-512 BF16 or AMX: twice float32's speed), else float32."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokeniser of a plain model folder, or the one inside its GGUF."""
    with _naming(folder):
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, **_gguf(folder)))


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM in evaluation mode from a plain Hugging Face folder, or from a folder that holds one GGUF.

    A GGUF is dequantised to `dtype` while loading, and the result can be saved as a plain folder.
    """
    with _naming(folder):
        gguf = _gguf(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **gguf)
        plain: Any = _without_quantisation(model) if gguf else model
        return cast(PreTrainedModel, plain.eval())


def load_adapter(model: PreTrainedModel, folder: Path, merge: bool = False) -> torch.nn.Module:
    """`model` with the LoRA adapter of a peft folder on top; `merge` folds it into the weights (in `model` itself)."""
    with _naming(folder):
        tuned = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
        tuned.to(model.dtype)
        return cast(torch.nn.Module, (tuned.merge_and_unload() if merge else tuned).eval())


def add_lora(model: PreTrainedModel, rank: int, alpha: int, from_layer: int) -> PeftModel:
    """`model` with a fresh trainable LoRA on every linear layer from block `from_layer` up; everything else frozen.

    The blocks below need no gradients, so autograd keeps nothing of them: half of a backward pass is saved. Attention
    is spelled out in matrix products: on a CPU the fused kernel's backward pass takes a quarter of a whole step.
    """
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")
    blocks = int(model.config.num_hidden_layers)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(LINEAR_LAYERS),
        layers_to_transform=list(range(from_layer, blocks)),
        task_type="CAUSAL_LM",
    )
    return cast(PeftModel, get_peft_model(model, config, autocast_adapter_dtype=False))


def save_adapter(tuned: PeftModel, folder: Path, base_name: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write adapter_config.json and adapter_model.safetensors in peft's format, with `base_name` in place of a path."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to(dtype).contiguous() for k, v in adapter_weights(tuned).items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = tuned.peft_config["default"].to_dict() | {"base_model_name_or_path": base_name, "inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")


def adapter_weights(tuned: PeftModel) -> dict[str, torch.Tensor]:
    """The LoRA matrices by name, as peft stores them."""
    return cast(dict[str, torch.Tensor], get_peft_model_state_dict(tuned))


def set_adapter_weights(tuned: PeftModel, weights: dict[str, torch.Tensor]) -> None:
    """Put back what `adapter_weights` gave. Raises ModelFilesError if the shapes are another model's."""
    with _naming(Path("adapter weights")):
        set_peft_model_state_dict(tuned, weights)


def copy_adapter(tuned: PeftModel, folder: Path, base_name: str) -> str:
    """Give `tuned` the weights of the adapter in a peft folder; returns the sha256 of their file.

    Raises ModelFilesError unless that adapter is of the same base, rank, alpha and layers.
    """
    with _naming(folder):
        theirs = json.loads((folder / "adapter_config.json").read_text())
        ours = tuned.peft_config["default"].to_dict() | {"base_model_name_or_path": base_name}
        for key in _SHAPING:
            mine, said = _plain(ours[key]), _plain(theirs.get(key))
            if mine != said:
                raise ValueError(f"the adapter's {key} is {said}, and this training's is {mine}")
        packed = (folder / "adapter_model.safetensors").read_bytes()
        weights = load(packed)
        if weights.keys() != adapter_weights(tuned).keys():
            raise ValueError("the adapter's weights are of other layers than its adapter_config.json says")
        set_peft_model_state_dict(tuned, weights)
        return hashlib.sha256(packed).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list) else value


def prefix_cache(model: torch.nn.Module, prefix: Sequence[int], rows: int) -> DynamicCache:
    """Keys and values of a prefix shared by `rows` rows, computed once. Gradients flow back through it."""
    cache = DynamicCache()
    _decoder(model)(input_ids=torch.tensor([list(prefix)]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache


def logits_at(model: torch.nn.Module, cache: DynamicCache, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, V), float32, after the tokens at positions `at` (B, K) of right-padded `ids` (B, T) behind `cache`.

    Padding needs no mask: it stands to the right of every token that is read. Only K positions reach the LM head.
    """
    hidden = _decoder(model)(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    picked = hidden.gather(1, at[:, :, None].expand(-1, -1, hidden.shape[-1]))
    return cast(torch.Tensor, _causal(model).lm_head(picked).float())


def _causal(model: torch.nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _decoder(model: torch.nn.Module) -> Any:
    return _causal(model).get_decoder()


def _gguf(folder: Path) -> dict[str, Any]:
    if (folder / "config.json").exists():
        return {}
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise OSError(f"holds no config.json and {len(files)} GGUF files: it needs the one or the other")
    return {"gguf_file": files[0].name}


def _without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights under a config that does not say GGUF: `save_pretrained` refuses the other one."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    config.pop("_model_name_or_path", None)
    plain: Any = type(model)(type(model.config).from_dict(config))
    plain.to(model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return cast(PreTrainedModel, plain)
