"""Answers that keep to a JSON schema: which tokens may come next, as llguidance says.

A schema is compiled when its request is admitted, so that one which cannot be kept to is refused before any work.
"""

from functools import cached_property
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from gateway.local.llm.refusals import Invalid

# At most one space between two parts: a model that cannot make up its mind does not fill its answer with white space.
_WHITE_SPACE = "[ ]?"
_BITS = torch.arange(32, dtype=torch.int32)


class Grammar:
    """Where one generation stands in its schema. What is cut off at its last token is the beginning of valid JSON."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allow(self, logits: Tensor) -> Tensor:
        """Logits (V,) with minus infinity for every token that cannot come next.

        Where the matcher has met its own limits, nothing can but the end.
        """
        words = torch.zeros(-(-len(logits) // 32), dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.nbytes)
        allowed = (words[:, None] >> _BITS & 1).bool().flatten()[: len(logits)]
        return logits.masked_fill(~allowed, -torch.inf)

    def follow(self, token: int) -> None:
        """The token was chosen."""
        self._matcher.consume_token(token)


class Grammars:
    """Compiles schemas for one tokeniser, which is itself made ready by the first of them."""

    def __init__(self, tokenizer: str, vocabulary: int, ends: list[int]) -> None:
        """`tokenizer` is the text of a tokenizer.json, `vocabulary` the width of the model's logits."""
        self._parts = (tokenizer, vocabulary, ends)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        tokenizer, vocabulary, ends = self._parts
        return LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=ends, slices=LLTokenizer.json_slices())

    def of_schema(self, schema: object) -> Grammar:
        """For one generation; takes from milliseconds to a second. Raises Invalid for what cannot be kept to."""
        if not isinstance(schema, dict):
            raise Invalid("`grammar` must hold a JSON schema")
        text = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITE_SPACE})
        matcher = LLMatcher(self._tokenizer, text)
        if matcher.is_error():
            raise Invalid(f"`grammar` is not supported: {matcher.get_error().splitlines()[0]}")
        return Grammar(matcher)


def schema_of(asked: Any) -> object:
    """The schema in TGI's `grammar`: `{"type": "json", "value": schema}`. Raises Invalid for every other kind."""
    if isinstance(asked, dict) and asked.get("type") == "json":
        return asked.get("value")
    raise Invalid("`grammar` of another type than `json` is not supported")
