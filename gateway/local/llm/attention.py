"""Keys and values of a batch, and the two ways in which a batch grows: by prompts, and by one token a row.

Shapes: B rows, H key-value heads, T slots, D head width, V vocabulary. Rows of different length share the slots; a
mask (B, T) says which slots hold a token of the row, and positions are given explicitly, so padding can stand anywhere.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]


class KeysValues:
    """Keys and values (B, H, T, D) of every layer; the part of transformers' Cache interface that Llama calls."""

    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self.layers: list[Layer] = list(layers)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> Layer:
        """Append new slots to a layer and return the whole of it."""
        if layer_idx == len(self.layers):
            self.layers.append((keys, values))
        else:
            old_keys, old_values = self.layers[layer_idx]
            self.layers[layer_idx] = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        return self.layers[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of slots."""
        return self.layers[layer_idx][0].shape[2] if len(self.layers) > layer_idx else 0

    def shared_by(self, rows: int) -> "KeysValues":
        """One row seen as `rows` rows, without copying."""
        return KeysValues([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers])

    def select(self, rows: Tensor, slots: Tensor) -> "KeysValues":
        """A copy of some rows and slots, both given as indices."""
        return KeysValues([(k[rows][:, :, slots], v[rows][:, :, slots]) for k, v in self.layers])

    def padded_left(self, slots: int) -> "KeysValues":
        """The same with as many empty slots in front."""
        pad = (0, 0, slots, 0)
        return KeysValues([(torch.nn.functional.pad(k, pad), torch.nn.functional.pad(v, pad)) for k, v in self.layers])

    def stacked(self, other: "KeysValues") -> "KeysValues":
        """The rows of both; they have the same number of slots."""
        pairs = zip(self.layers, other.layers, strict=True)
        return KeysValues([(torch.cat([k, k2]), torch.cat([v, v2])) for (k, v), (k2, v2) in pairs])


class Context(NamedTuple):
    """What a batch has read so far: `held` (B, T) is True where a slot holds a token of the row."""

    cache: KeysValues
    held: Tensor

    def keep(self, rows: Sequence[int]) -> "Context":
        """Some rows only, and only the slots that these still use."""
        chosen = torch.tensor(rows, dtype=torch.long)
        held = self.held[chosen]
        slots = held.any(dim=0).nonzero().squeeze(1)
        return Context(self.cache.select(chosen, slots), held[:, slots])

    def joined(self, other: Self) -> "Context":
        """The rows of both in one batch; the shorter one is padded in front."""
        slots = max(self.held.shape[1], other.held.shape[1])
        left, right = self._widened(slots), other._widened(slots)
        return Context(left.cache.stacked(right.cache), torch.cat([left.held, right.held]))

    def _widened(self, slots: int) -> "Context":
        missing = slots - self.held.shape[1]
        if missing == 0:
            return self
        return Context(self.cache.padded_left(missing), torch.nn.functional.pad(self.held, (missing, 0)))


def read_prompts(
    model: torch.nn.Module, suffixes: Sequence[Sequence[int]], prefix: KeysValues, every_position: bool = False
) -> tuple[Tensor, Context]:
    """Read one prompt a row behind a prefix that all of them share (possibly empty). No suffix may be empty.

    Returns logits (B, V) after the last tokens, float32, or (B, S, V) with `every_position`, S the longest suffix.
    Suffixes are padded on the left, so that every row ends in the last slot.
    """
    rows, width, shared = len(suffixes), max(map(len, suffixes)), prefix.get_seq_length()
    ids = torch.zeros(rows, width, dtype=torch.long)
    held = torch.zeros(rows, width, dtype=torch.bool)
    for row, suffix in enumerate(suffixes):
        ids[row, width - len(suffix) :] = torch.tensor(suffix)
        held[row, width - len(suffix) :] = True
    positions = (held.cumsum(1) - 1).clamp(min=0) + shared
    held = torch.cat([torch.ones(rows, shared, dtype=torch.bool), held], dim=1)
    return _forward(model, ids, positions, Context(prefix.shared_by(rows), held), every_position)


def read_tokens(model: torch.nn.Module, tokens: Sequence[int], context: Context) -> tuple[Tensor, Context]:
    """Read one more token a row. Returns logits (B, V), float32, and the context grown by a slot."""
    positions = context.held.sum(1, keepdim=True)
    held = torch.nn.functional.pad(context.held, (0, 1), value=True)
    ids = torch.tensor(tokens).unsqueeze(1)
    return _forward(model, ids, positions, Context(context.cache, held), every_position=False)


def _forward(
    model: torch.nn.Module, ids: Tensor, positions: Tensor, context: Context, every_position: bool
) -> tuple[Tensor, Context]:
    """`context.held` already has the new slots, `context.cache` does not; the model appends them."""
    width, slots = ids.shape[1], context.held.shape[1]
    causal = torch.ones(width, slots, dtype=torch.bool).tril(slots - width)
    # A padded query may look at itself: softmax over nothing would be NaN, and NaN spreads through the values.
    itself = torch.zeros(width, slots, dtype=torch.bool)
    itself[:, slots - width :] = torch.eye(width, dtype=torch.bool)
    mask = (context.held[:, None, :] & causal) | itself
    output = model(
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=positions,
        past_key_values=context.cache,
        use_cache=True,
        logits_to_keep=0 if every_position else 1,
    )
    logits = output.logits.float()
    return (logits if every_position else logits[:, -1]), context
