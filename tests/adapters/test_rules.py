"""The rules stage: what matches, what is excused, and every mistake of a rules file at once."""

import json
import time
from pathlib import Path

import pytest

from gateway.adapters.rules import RulesRunner, build_rules
from gateway.core.cascade import Finding, StageFailed
from gateway.core.loaded import StageFiles
from gateway.core.problems import InvalidConfig
from gateway.core.task import Policy, RulesStage, Task

SHIPPED = Path(__file__).parents[2] / "tasks" / "message-moderation"
POLICIES = ("abuse", "sexual", "spam_scam", "off_platform", "partnership", "job_seeking")


def files_in(folder: Path) -> StageFiles:
    task = Task(
        owner="team", description="", input="", output="", stage=(), positive="violation",
        actions={"clean": "deliver", "violation": "review", "deferred": "review"},
        policy={name: Policy(severity=1, text="") for name in POLICIES},
    )  # fmt: skip
    return StageFiles("moderation", task, folder)


def build(folder: Path, rules: str) -> RulesRunner:
    (folder / "rules.toml").write_text(rules)
    return build_rules(RulesStage(name="rules", file="rules.toml"), files_in(folder), "stage[0]")


async def find(runner: RulesRunner, message: str) -> Finding:
    return await runner.run({"message": message}, None)  # type: ignore[arg-type]


@pytest.fixture
def shipped() -> RulesRunner:
    return build_rules(RulesStage(name="rules", file="rules.toml"), files_in(SHIPPED), "stage[0]")


async def test_match_gives_label_policy_and_rule_names(tmp_path: Path) -> None:
    """A match says the rule's label, the policies and all rules that agree; a score is not theirs to give."""
    runner = build(
        tmp_path,
        """
        [[rule]]
        name = "cash"
        label = "violation"
        policy = "off_platform"
        patterns = ['\\bpay ?cash\\b']
        [[rule]]
        name = "codes"
        label = "violation"
        policy = "spam_scam"
        patterns = ['\\bcodes?\\b']
        """,
    )
    finding = await find(runner, "P a y  c a s h and send the c0de")
    assert finding == Finding(
        label="violation", output={"policies": ["off_platform", "spam_scam"]}, matched=("cash", "codes")
    )
    assert await find(runner, "See you at ten") == Finding(reason="no_rule_matched")


async def test_unless_excuses_one_rule_or_all(tmp_path: Path) -> None:
    """A rule's own `unless` excuses that rule; the file's excuses every rule."""
    runner = build(
        tmp_path,
        """
        unless = ['\\bscam\\b']
        [[rule]]
        name = "a"
        label = "violation"
        patterns = ["alpha"]
        unless = ["beta"]
        [[rule]]
        name = "b"
        label = "violation"
        patterns = ["alpha", "gamma"]
        """,
    )
    assert (await find(runner, "alpha")).matched == ("a", "b")
    assert (await find(runner, "alpha beta")).matched == ("b",)
    assert (await find(runner, "alpha, a scam")).reason == "no_rule_matched"


async def test_text_is_read_from_the_declared_field(tmp_path: Path) -> None:
    """The field is the stage's to name; an input without text there is a failure, never a pass in silence."""
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "a"\nlabel = "violation"\npatterns = ["alpha"]\n')
    stage = RulesStage(name="rules", file="rules.toml", text="body")
    runner = build_rules(stage, files_in(tmp_path), "stage[0]")
    assert (await runner.run({"body": "alpha"}, None)).label == "violation"  # type: ignore[arg-type]
    with pytest.raises(StageFailed, match="no_text"):
        await runner.run({"message": "alpha"}, None)  # type: ignore[arg-type]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    """Unknown labels and policies, empty rules, patterns that RE2 refuses or that match everything: all, with hints."""
    with pytest.raises(InvalidConfig) as caught:
        build(
            tmp_path,
            """
            [[rule]]
            name = "same"
            label = "violatoin"
            policy = "spam"
            patterns = ['(?=cash)', '(a)\\1', 'x*', 'c4sh', '(open']
            [[rule]]
            name = "same"
            label = "violation"
            patterns = []
            """,
        )
    assert [(p.file, p.path, p.message, p.hint) for p in caught.value.problems] == [
        ("tasks/moderation/rules.toml", "rule", "two rules are called `same`", ""),
        (
            "tasks/moderation/rules.toml", "rule[0].label", "the task has no label `violatoin`",
            "did you mean `violation`?",
        ),
        (
            "tasks/moderation/rules.toml", "rule[0].patterns[0]",
            "RE2 refuses this pattern: invalid perl operator: (?=",
            "RE2 has no look-around: use `unless` for what must not be there",
        ),
        (
            "tasks/moderation/rules.toml", "rule[0].patterns[1]",
            "RE2 refuses this pattern: invalid escape sequence: \\1",
            "RE2 has no back-references: they cannot be matched in linear time",
        ),
        (
            "tasks/moderation/rules.toml", "rule[0].patterns[2]", "this pattern is found in every message",
            "it matches the empty text",
        ),
        (
            "tasks/moderation/rules.toml", "rule[0].patterns[3]", "this pattern can never match folded text",
            "after normalisation it reads `cash`",
        ),
        (
            "tasks/moderation/rules.toml", "rule[0].patterns[4]", "RE2 refuses this pattern: missing ): (open",
            "see https://github.com/google/re2/wiki/Syntax",
        ),
        (
            "tasks/moderation/rules.toml", "rule[0].policy", "there is no [policy.spam] in task.toml",
            "did you mean `spam_scam`?",
        ),
        ("tasks/moderation/rules.toml", "rule[1].patterns", "a rule needs at least one pattern", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["[[rule]\n", "rules = 1\n", '[[rule]]\nname = "a"\n'])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    """Broken TOML, unknown keys and missing keys are problems of the file, not a crash."""
    with pytest.raises(InvalidConfig):
        build(tmp_path, content)


async def test_hostile_patterns_and_messages_stay_linear(tmp_path: Path) -> None:
    """A pattern that makes backtracking engines explode costs 20,000 characters no more than their length."""
    runner = build(tmp_path, '[[rule]]\nname = "a"\nlabel = "violation"\npatterns = ["(ab|a|b)*(ab|ba)*c"]\n')
    start = time.perf_counter()
    assert (await find(runner, "ab" * 10_000)).reason == "no_rule_matched"
    assert time.perf_counter() - start < 15, "what backtracks never ends"


async def test_demo_messages_for_the_rules(shipped: RulesRunner) -> None:
    """The shipped rules decide the demo's gift cards and messenger cash, and touch no message that is delivered."""
    demo = [json.loads(line) for line in (SHIPPED / "demo.jsonl").read_text().splitlines()]
    found = {d["input"]["message"]: await find(shipped, d["input"]["message"]) for d in demo}
    policies = {text: f.output["policies"] for text, f in found.items() if f.label}
    assert {p[0] for text, p in policies.items() if "gift" in text} == {"spam_scam"}
    assert {p[0] for text, p in policies.items() if "wh4tsapp" in text} == {"off_platform"}
    assert all(found[d["input"]["message"]].label is None for d in demo if d["action"] == "deliver")


@pytest.mark.parametrize(
    "message",
    [
        "Never send gift card codes to anybody, it is a scam.",
        "Someone texted me to buy gift cards and send the codes. Was that you?",
        "Can I pay with the platform gift card my aunt gave me?",
        "He wanted me to pay outside the app to save the fee, so I reported him.",
        "Please don't ask me to pay cash on whatsapp, I keep it in the app.",
        "Send me the gate code by text when you are home, I come at nine.",
        "Are you hiring a cleaner for the weekend, or is the job I posted still yours?",
        "What can you tell me about the card PIN?",
        "We need the website done by May. Is SEO for our bakery part of your package?",
        "Strip the wire, kill the power and screw the stud to the wall.",
    ],
)
async def test_hard_negatives_pass(shipped: RulesRunner, message: str) -> None:
    """Warnings, quotations, refusals and trade words are not the rules' to hold back."""
    assert (await find(shipped, message)).label is None


@pytest.mark.parametrize(
    ("message", "policy"),
    [
        ("Buy three steam gift cards, scratch them and send me pictures of the backs", "spam_scam"),
        ("Reply with your bank PIN so that we can release the payout", "spam_scam"),
        ("B1tcoin d0ubler: d0uble your m0ney in a week", "spam_scam"),
        ("Let's do it outside the app, you save the fee", "off_platform"),
        ("Add me on telegram and pay cash, s k i p the 5ervice fee", "off_platform"),
        ("We can get your business to the first page of google", "partnership"),
        ("Is there any work on your crew for my brother?", "job_seeking"),
        ("Are you hiring? I can start on Monday", "job_seeking"),
        ("Show me some nudes first", "sexual"),
    ],
)
async def test_obvious_violations_are_decided(shipped: RulesRunner, message: str, policy: str) -> None:
    """What is stated outright needs no model."""
    finding = await find(shipped, message)
    assert finding.label == "violation"
    assert finding.output["policies"] == [policy]
