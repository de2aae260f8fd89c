"""The rules stage: patterns on folded text, in RE2, so that no pattern and no message can make it slow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import re2  # type: ignore[import-untyped]

from gateway.core.cascade import Finding, StageFailed
from gateway.core.config import construct, read_toml
from gateway.core.loaded import StageFiles
from gateway.core.meaning import labels_of
from gateway.core.meter import Meter
from gateway.core.problems import InvalidConfig, Problem, did_you_mean
from gateway.core.task import Declared, Name, RulesStage
from gateway.core.text import fold

_MEMORY = 8 << 20
"""Bytes that RE2 may use for one set of patterns; its automaton is built lazily and flushed when it is full."""


class Rule(Declared, frozen=True):
    """Says `label`, for `policy`, where one of `patterns` is found in the folded text and none of `unless` is."""

    name: Name
    label: str
    patterns: tuple[str, ...]
    policy: str | None = None
    unless: tuple[str, ...] = ()


class RuleFile(Declared, frozen=True):
    """`rules.toml`. The file's own `unless` holds for every rule."""

    rule: tuple[Rule, ...]
    unless: tuple[str, ...] = ()


class RulesRunner:
    """All rules of a task, matched in two linear passes over a message."""

    def __init__(self, rules: RuleFile, text: str) -> None:
        self._rules = rules.rule
        self._text = text
        self._patterns = _Owned((i, p) for i, rule in enumerate(rules.rule) for p in rule.patterns)
        everywhere = [(i, p) for i in range(len(rules.rule)) for p in rules.unless]
        self._unless = _Owned(everywhere + [(i, p) for i, rule in enumerate(rules.rule) for p in rule.unless])

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """The first rule that matches gives the label; all that match with the same label are named."""
        message = item.get(self._text)
        if not isinstance(message, str):
            raise StageFailed("no_text", f"the input has no text in `{self._text}`")
        matched = [self._rules[i] for i in self._matches(fold(message))]
        if not matched:
            return Finding(reason="no_rule_matched")
        label = matched[0].label
        agreeing = [rule for rule in matched if rule.label == label]
        policies = list(dict.fromkeys(rule.policy for rule in agreeing if rule.policy is not None))
        return Finding(
            label=label,
            output={"policies": policies} if policies else {},
            matched=tuple(rule.name for rule in agreeing),
        )

    def _matches(self, folded: str) -> Sequence[int]:
        found = self._patterns.owners_in(folded)
        return sorted(found - self._unless.owners_in(folded)) if found else ()


class _Owned:
    """Patterns that belong to rules by index, searched all at once."""

    def __init__(self, owned: Iterable[tuple[int, str]]) -> None:
        owners: dict[str, set[int]] = {}
        for owner, pattern in owned:
            owners.setdefault(pattern, set()).add(owner)
        self._owners = list(owners.values())
        self._set = re2.Set.SearchSet(_options())
        for pattern in owners:
            self._set.Add(pattern)
        if owners:
            self._set.Compile()

    def owners_in(self, text: str) -> set[int]:
        if not self._owners:
            return set()
        return set().union(*(self._owners[i] for i in self._set.Match(text) or ()))


def build_rules(stage: RulesStage, files: StageFiles, place: str) -> RulesRunner:
    """Read and compile the stage's rules file. Raises InvalidConfig with every mistake in it."""
    file = f"tasks/{files.task_name}/{stage.file}"
    problems: list[Problem] = []
    try:
        raw = read_toml((files.folder / stage.file).read_bytes(), file, problems)
    except OSError as error:
        raise InvalidConfig([Problem(file, "", f"this file cannot be read: {error.strerror}")]) from error
    rules = construct(RuleFile, raw, file, "", problems) if raw is not None else None
    if rules is not None:
        problems.extend(_problems(rules, files, file))
    if rules is None or problems:
        raise InvalidConfig(problems)
    return RulesRunner(rules, stage.text)


def _problems(rules: RuleFile, files: StageFiles, file: str) -> Iterator[Problem]:
    names = [rule.name for rule in rules.rule]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(file, "rule", f"two rules are called `{name}`")
    yield from _pattern_problems(rules.unless, file, "unless")
    labels = labels_of(files.task)
    for i, rule in enumerate(rules.rule):
        place = f"rule[{i}]"
        if labels and rule.label not in labels:
            yield Problem(
                file,
                f"{place}.label",
                f"the task has no label `{rule.label}`",
                did_you_mean(rule.label, labels),
            )
        if rule.policy is not None and rule.policy not in files.task.policy:
            hint = did_you_mean(rule.policy, files.task.policy)
            yield Problem(file, f"{place}.policy", f"there is no [policy.{rule.policy}] in task.toml", hint)
        if not rule.patterns:
            yield Problem(file, f"{place}.patterns", "a rule needs at least one pattern")
        yield from _pattern_problems(rule.patterns, file, f"{place}.patterns")
        yield from _pattern_problems(rule.unless, file, f"{place}.unless")


def _pattern_problems(patterns: Sequence[str], file: str, place: str) -> Iterator[Problem]:
    for i, pattern in enumerate(patterns):
        try:
            compiled = re2.compile(pattern, _options())
        except re2.error as error:
            yield Problem(file, f"{place}[{i}]", f"RE2 refuses this pattern: {_reason(error)}", _hint(pattern))
            continue
        if compiled.search("") is not None:
            yield Problem(file, f"{place}[{i}]", "this pattern is found in every message", "it matches the empty text")
        elif fold(pattern) != pattern.casefold() and pattern.isalnum():
            hint = f"after normalisation it reads `{fold(pattern)}`"
            yield Problem(file, f"{place}[{i}]", "this pattern can never match folded text", hint)


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)


def _hint(pattern: str) -> str:
    if any(look in pattern for look in ("(?=", "(?!", "(?<")):
        return "RE2 has no look-around: use `unless` for what must not be there"
    if any(f"\\{digit}" in pattern for digit in "123456789"):
        return "RE2 has no back-references: they cannot be matched in linear time"
    return "see https://github.com/google/re2/wiki/Syntax"


def _options() -> re2.Options:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = _MEMORY
    return options
