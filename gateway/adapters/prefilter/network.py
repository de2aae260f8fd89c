"""The prefilter's network: convolutions over words and over bytes, pooled, and a small head."""

from typing import NamedTuple

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn import functional

from gateway.adapters.prefilter.reading import Batch

ARCHITECTURE = "word-and-byte-cnn/1"


class Shape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the layers. `table_rows` follows from the alphabet."""

    table_rows: int
    word_dim: int = 128
    word_filters: int = 96
    byte_dim: int = 16
    byte_filters: int = 32
    hidden: int = 96
    architecture: str = ARCHITECTURE


class Dropout(NamedTuple):
    """Shares that training silences; serving silences nothing."""

    words: float = 0.0
    features: float = 0.0


class Network(nn.Module):
    """Logit of the positive label.

    The convolutions have no bias: where there is no text they answer exactly zero, so padding is silent.
    """

    def __init__(self, shape: Shape, dropout: Dropout = Dropout()) -> None:  # noqa: B008 - an immutable value
        super().__init__()
        self.shape = shape
        filters, narrow = shape.word_filters, shape.byte_filters
        self.table = nn.EmbeddingBag(shape.table_rows, shape.word_dim, mode="mean")
        self.words_near = Convolution(shape.word_dim, filters, width=3)
        self.words_far = Convolution(filters, filters, width=3)
        self.letters = nn.Embedding(256, shape.byte_dim, padding_idx=0)
        self.bytes_near = Convolution(shape.byte_dim, narrow, width=5, stride=2)
        self.bytes_far = Convolution(narrow, narrow, width=5, stride=2)
        self.mix = nn.Linear(shape.word_dim + 3 * filters + narrow, shape.hidden)
        self.answer = nn.Linear(shape.hidden, 1)
        self.dropout = dropout

    def forward(self, batch: Batch) -> Tensor:
        """(B,) logits."""
        logits: Tensor = self.answer(self.features(batch)).squeeze(1)
        return logits

    def features(self, batch: Batch) -> Tensor:
        """(B, hidden): what the head decides from."""
        silenced = functional.dropout(self._pooled(batch), self.dropout.features, self.training)
        return functional.dropout(torch.relu(self.mix(silenced)), self.dropout.features, self.training)

    def _pooled(self, batch: Batch) -> Tensor:
        words = self._placed_words(batch)
        near = self.words_near(words)
        far = self.words_far(near)
        letters = self.bytes_far(self.bytes_near(self.letters(batch.bytes)))
        return torch.cat(
            (
                words.sum(1) / batch.counts,
                near.amax(1),
                far.amax(1),
                far.sum(1) / batch.counts,
                letters.amax(1),
            ),
            1,
        )

    def _placed_words(self, batch: Batch) -> Tensor:
        """(B, T, word_dim)."""
        vectors = self.table(batch.rows, batch.starts)
        if self.training and self.dropout.words:
            vectors = vectors * (torch.rand(len(vectors), 1) >= self.dropout.words)
        nothing = vectors.new_zeros(1, vectors.shape[1])
        return torch.cat((nothing, vectors))[batch.places]


class Convolution(nn.Module):
    """A convolution over time with ReLU, (B, T, in) → (B, ⌈T / stride⌉, out), as one matrix product.

    At these sizes that is several times as fast on one core as torch's own convolution, whose set-up dominates.
    """

    def __init__(self, channels: int, filters: int, *, width: int, stride: int = 1) -> None:
        super().__init__()
        self.width, self.stride = width, stride
        self.weight = nn.Linear(width * channels, filters, bias=False)

    def forward(self, signal: Tensor) -> Tensor:
        margin = self.width // 2
        padded = functional.pad(signal, (0, 0, margin, margin))
        spans = (padded.shape[1] - self.width) // self.stride + 1
        last = (spans - 1) * self.stride + 1
        windows = torch.cat([padded[:, i : i + last : self.stride] for i in range(self.width)], 2)
        return torch.relu(self.weight(windows))
