"""From logits to a token. The order of the transformations, and that log-probs come after them, are TGI's."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gateway.local.llm.jobs import Sampling


class Choice(NamedTuple):
    """A chosen token id with its log-prob, and the most likely ids with theirs (ties may make the list longer)."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


def choose_greedy(logits: Tensor, top_n: Sequence[int]) -> list[Choice]:
    """The most likely token of every row of (B, V), with as many top tokens a row as asked for."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.max(-1)
    chosen = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Choice(id_, lp, top_tokens(logprobs[row], top_n[row])) for row, (id_, lp) in enumerate(chosen)]


def choose(logits: Tensor, sampling: Sampling, top_n: int, prompt: Sequence[int], generated: Sequence[int]) -> Choice:
    """One token from (V,). The draw depends only on the seed, the position and the logits, never on the batch."""
    logprobs = warp(logits, sampling, prompt, generated).log_softmax(-1)
    if sampling.greedy:
        chosen = int(logprobs.argmax())
    else:
        dice = torch.Generator().manual_seed(((sampling.seed or 0) * 1_000_003 + len(generated)) % 2**63)
        chosen = int(torch.multinomial(logprobs.exp(), 1, generator=dice))
    return Choice(chosen, float(logprobs[chosen]), top_tokens(logprobs, top_n))


def top_tokens(logprobs: Tensor, n: int) -> list[tuple[int, float]]:
    """The n most likely of (V,), most likely first, with what ties with the last of them; none with probability 0."""
    if n == 0:
        return []
    floor = logprobs.topk(n).values[-1].clamp(min=torch.finfo(logprobs.dtype).min)
    ids = (logprobs >= floor).nonzero().squeeze(1)
    return sorted(zip(ids.tolist(), logprobs[ids].tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))


def warp(logits: Tensor, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Penalties, then temperature, top_k, top_p, typical_p; excluded tokens are at minus infinity."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *generated}))
        scores, penalty = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if sampling.frequency_penalty != 0.0 and generated:
        logits -= sampling.frequency_penalty * torch.bincount(torch.tensor(generated), minlength=len(logits))
    logits /= sampling.temperature
    if sampling.top_k is not None:
        logits[logits < logits.topk(min(sampling.top_k, len(logits))).values[-1]] = -torch.inf
    if sampling.top_p is not None:
        logits = _nucleus(logits, -logits, sampling.top_p)
    if sampling.typical_p is not None:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nansum()
        logits = _nucleus(logits, (-logprobs - entropy).abs(), sampling.typical_p)
    return logits


def _nucleus(logits: Tensor, badness: Tensor, mass: float) -> Tensor:
    """Keep the tokens of least badness until their probability reaches `mass`; always at least one."""
    order = badness.argsort()
    before = logits.softmax(-1)[order].cumsum(0).roll(1)
    before[0] = 0.0
    logits[order[before >= mass]] = -torch.inf
    return logits
