"""The prefilter's lexicon, and first vectors for it taken from a language model's input embeddings.

Words that a language model reads alike start out alike, so that the prefilter has a notion of words which its few
thousand labelled messages never show.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from gateway.adapters.prefilter.reading import Alphabet, Reader, words_of
from gateway.lab.rows import LabError

_WHOLE_WORD = re.compile(r"Ġ[a-z]+")
_EMBEDDING = "embed_tokens.weight"
_FIT_STEPS = 600
_FIT_BATCH = 1024
_CHUNK = 1024


def choose_words(texts: Iterable[str], base: Path | None, size: int, least: int) -> list[str]:
    """At most `size` words: those that stand in `least` texts or more, then the most common single tokens of `base`."""
    seen = Counter(word for text in texts for word in set(words_of(text)))
    chosen = [word for word, n in sorted(seen.items(), key=lambda pair: (-pair[1], pair[0])) if n >= least]
    if base is not None:
        vocabulary = _tokenizer(base).get_vocab()
        tokens = sorted((row, token[1:]) for token, row in vocabulary.items() if _WHOLE_WORD.fullmatch(token))
        chosen += [word for _, word in tokens]
    return list(dict.fromkeys(chosen))[:size]


def first_table(alphabet: Alphabet, dim: int, base: Path | None, seed: int) -> Tensor:
    """(table rows, dim): vectors of `base` for the words, and letter groups fitted to them; random without a base."""
    torch.manual_seed(seed)
    reader = Reader(alphabet)
    table = torch.randn(reader.table_rows, dim) * 0.1
    table[0] = 0
    if base is None:
        return table
    words = alphabet.words
    leading = _principal(_vectors(words, base), dim)
    # A small base has fewer components than the table: the rest stays random.
    table[1 : len(words) + 1, : leading.shape[1]] = leading
    return _fit_groups(table, reader, words)


def nearest(table: Tensor, words: int, count: int) -> Tensor:
    """(words + 1, count): for each word's row the rows of those whose first vectors point most nearly its way."""
    directions = nn.functional.normalize(table[1 : words + 1], dim=1)
    found = torch.zeros(words + 1, count, dtype=torch.long)
    for start in range(0, words, _CHUNK):
        likeness = directions[start : start + _CHUNK] @ directions.T
        found[start + 1 : start + 1 + len(likeness)] = likeness.topk(count + 1).indices[:, 1:] + 1
    return found


def _vectors(words: Sequence[str], base: Path) -> Tensor:
    """(words, model dim): the mean of the input embeddings of a word's tokens."""
    embedding, tokenizer = _embedding(base), _tokenizer(base)
    encoded = tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False)
    return torch.stack([embedding[e.ids or [0]].mean(0) for e in encoded])


def _principal(vectors: Tensor, dim: int) -> Tensor:
    """The leading components of the centred vectors, scaled to a spread of 0.1 a component on average."""
    centred = vectors - vectors.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    projected = centred @ axes[:, -dim:].flip(1)
    scaled: Tensor = projected * (0.1 / projected.std())
    return scaled


def _fit_groups(table: Tensor, reader: Reader, words: Sequence[str]) -> Tensor:
    """The table with letter groups whose mean comes near the vector of the word that they spell."""
    groups = [torch.tensor(reader.groups_of(word)) for word in words]
    bag = nn.EmbeddingBag.from_pretrained(table.clone(), freeze=False, mode="mean", sparse=True)
    optimizer = torch.optim.SparseAdam(list(bag.parameters()), lr=0.02)
    for _ in range(_FIT_STEPS):
        picked = torch.randint(len(words), (_FIT_BATCH,)).tolist()
        spelled = [groups[i] for i in picked]
        starts = torch.tensor([0, *(len(g) for g in spelled[:-1])]).cumsum(0)
        loss = (bag(torch.cat(spelled), starts) - table[torch.tensor(picked) + 1]).pow(2).mean() * 100
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # type: ignore[no-untyped-call]
    fitted = bag.weight.detach()
    fitted[: len(words) + 1] = table[: len(words) + 1]
    return fitted


def _tokenizer(base: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(base / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise LabError(f"{base}: no readable tokenizer.json: {error}") from error


def _embedding(base: Path) -> Tensor:
    try:
        with safe_open(base / "model.safetensors", "pt") as file:
            name = next((key for key in file.keys() if key.endswith(_EMBEDDING)), None)  # noqa: SIM118 - not a dict
            if name is None:
                raise LabError(f"{base}: the model has no {_EMBEDDING}")
            tensor: Tensor = file.get_tensor(name).float()
            return tensor
    except (OSError, SafetensorError) as error:
        raise LabError(f"{base}: no readable model.safetensors: {error}") from error
