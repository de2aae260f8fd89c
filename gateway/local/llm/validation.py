"""From parameters on the wire to a Generation, with TGI's rules about what is refused and what turns sampling on."""

import secrets

from msgspec import Struct

from gateway.local.llm.grammar import Grammar
from gateway.local.llm.jobs import Generation, Sampling
from gateway.local.llm.refusals import Invalid
from gateway.local.llm.wire import Parameters


class Bounds(Struct, frozen=True, kw_only=True):
    """What the launcher allows. `adapters` are the names that are loaded."""

    max_input_tokens: int
    max_total_tokens: int
    max_top_n_tokens: int
    max_stop_sequences: int
    adapters: frozenset[str]
    reject_unknown_adapter: bool


def plan(
    parameters: Parameters | None, prompt: list[int], bounds: Bounds, grammar: Grammar | None = None
) -> Generation:
    """The generation that a request asks for. Without `parameters` at all it samples. Raises Invalid."""
    if parameters is None:
        parameters = Parameters(do_sample=True)
    _check(parameters, bounds)
    if parameters.truncate is not None:
        prompt = prompt[-parameters.truncate :]
    return Generation(
        prompt=prompt,
        adapter=_adapter(parameters.adapter_id, bounds),
        max_new_tokens=_max_new_tokens(parameters.max_new_tokens, len(prompt), bounds),
        sampling=_sampling(parameters),
        top_n=parameters.top_n_tokens or 0,
        stop=tuple(stop for stop in parameters.stop or () if stop),
        prompt_logprobs=bool(parameters.decoder_input_details),
        grammar=grammar,
    )


def _check(p: Parameters, bounds: Bounds) -> None:
    """Raise Invalid for the first parameter that is out of bounds or that this server does not have."""
    top_n = bounds.max_top_n_tokens
    stops = bounds.max_stop_sequences
    rules = (
        (p.temperature is None or p.temperature > 0, "`temperature` must be strictly positive"),
        (p.repetition_penalty is None or p.repetition_penalty > 0, "`repetition_penalty` must be strictly positive"),
        (p.frequency_penalty is None or -2 <= p.frequency_penalty <= 2, "`frequency_penalty` must be in [-2, 2]"),
        (p.top_p is None or 0 < p.top_p < 1, "`top_p` must be > 0.0 and < 1.0"),
        (p.top_k is None or p.top_k > 0, "`top_k` must be strictly positive"),
        (p.typical_p is None or 0 < p.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0"),
        (p.seed is None or 0 <= p.seed < 2**64, "`seed` must be an unsigned 64-bit integer"),
        (p.best_of is None or p.best_of == 1, "`best_of` other than 1 is not supported"),
        (not p.watermark, "`watermark` is not supported"),
        (p.max_new_tokens is None or p.max_new_tokens > 0, "`max_new_tokens` must be strictly positive"),
        (
            p.truncate is None or 0 < p.truncate <= bounds.max_input_tokens,
            f"`truncate` must be strictly positive and at most {bounds.max_input_tokens}. Given: {p.truncate}",
        ),
        (
            0 <= (p.top_n_tokens or 0) <= top_n,
            f"`top_n_tokens` must be >= 0 and <= {top_n}. Given: {p.top_n_tokens}",
        ),
        (
            len(p.stop or ()) <= stops,
            f"`stop` supports up to {stops} stop sequences. Given: {len(p.stop or ())}",
        ),
    )
    for holds, error in rules:
        if not holds:
            raise Invalid(error)


def _max_new_tokens(asked: int | None, inputs: int, bounds: Bounds) -> int:
    total = bounds.max_total_tokens
    if inputs == 0:
        raise Invalid("`inputs` cannot be empty")
    if inputs > bounds.max_input_tokens:
        raise Invalid(f"`inputs` must have less than {bounds.max_input_tokens + 1} tokens. Given: {inputs}")
    if asked is not None and inputs + asked > total:
        raise Invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
            f"Given: {inputs} `inputs` tokens and {asked} `max_new_tokens`"
        )
    return total - inputs if asked is None else asked


def _adapter(name: str | None, bounds: Bounds) -> str:
    """The adapter's name, "" for the base model: also, silently, for a name that is not loaded, unless refused."""
    if name is None or name in bounds.adapters:
        return name or ""
    if bounds.reject_unknown_adapter:
        raise Invalid(f"`adapter_id` is not loaded. Given: {name[:80]!r}")
    return ""


def _sampling(p: Parameters) -> Sampling:
    """A temperature other than 1, or any of top_k, top_p and typical_p, samples whatever `do_sample` says."""
    warped = p.temperature not in (None, 1.0) or any(v is not None for v in (p.top_k, p.top_p, p.typical_p))
    samples = bool(p.do_sample) or warped
    seed = secrets.randbits(63) if p.seed is None else p.seed
    return Sampling(
        greedy=not samples,
        seed=seed if samples else None,
        temperature=p.temperature or 1.0,
        top_k=p.top_k,
        top_p=p.top_p,
        typical_p=p.typical_p,
        repetition_penalty=p.repetition_penalty or 1.0,
        frequency_penalty=p.frequency_penalty or 0.0,
    )
