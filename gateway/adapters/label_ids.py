"""Which token stands for which label, right behind a stage's prompt, by the tokeniser that the model really uses."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from gateway.core.task import ChainStage


class BadToken(Exception):
    """A label or a policy is not one token of its own. `kind` is its table in the stage, `name` its key there."""

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name


class LabelIds(Struct, frozen=True):
    """Token id (or text, where a server gives no ids) → the label, and the policy, that it stands for."""

    labels: Mapping[int | str, str]
    policies: Mapping[int | str, str]


def by_text(stage: ChainStage) -> LabelIds:
    """For servers that name tokens by their text."""
    return LabelIds({t: label for label, t in stage.labels.items()}, {t: p for p, t in stage.policies.items()})


def probes(stage: ChainStage, prompt: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(kind, name) → (text before the token, text with it), right behind the prompt.

    A policy's token is probed there too: as text it might melt with the label before it ("BC" is one token to many
    tokenisers), but a model that was taught two tokens generates two.
    """
    named = (("labels", stage.labels), ("policies", stage.policies))
    return {(kind, name): (prompt, prompt + token) for kind, tokens in named for name, token in tokens.items()}


def label_ids(
    pairs: Mapping[tuple[str, str], tuple[str, str]], ids: Mapping[str, Sequence[int]]
) -> tuple[LabelIds, list[BadToken]]:
    """Tokens from the probes and the ids of each text in them, and what is wrong with them."""
    wrong: list[BadToken] = []
    found: dict[str, dict[int | str, str]] = {"labels": {}, "policies": {}}
    for (kind, name), (before, after) in pairs.items():
        head, whole = list(ids[before]), list(ids[after])
        if len(whole) != len(head) + 1 or whole[:-1] != head:
            token = after[len(before) :]
            wrong.append(BadToken(kind, name, f"`{token}` is not exactly one token after the prompt"))
        elif (other := found[kind].setdefault(whole[-1], name)) != name:
            wrong.append(BadToken(kind, name, f"shares its token with `{other}`"))
    return LabelIds(found["labels"], found["policies"]), wrong
