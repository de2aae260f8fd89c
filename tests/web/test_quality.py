"""Who may see whether the machine and the people are right."""

import pytest


async def test_the_owner_sees_a_row_for_each_version(served) -> None:
    """What nobody judged is null; what the ledger counts is there, beside its cost."""
    answer = await served.client.get("/quality?task=message-moderation", headers=_as(served.memory.tokens["trust"]))
    assert answer.status_code == 200
    body = answer.json()
    (row,) = body["rows"]
    assert (row["runs"], row["recall"], row["routing_share"]["value"], row["cost_nano"]) == (100, None, 0.0, 0)
    assert row["routing_share"]["high"] > 0
    assert body["currency"] == "USD"


async def test_leads_see_the_agreement_of_their_reviewers(served) -> None:
    """A known item answered right is in it."""
    key = served.memory.key("trust", "lead")
    body = (await served.client.get("/reviews/agreement?task=message-moderation", headers=_as(key))).json()
    (one,) = body["people"]["reviewers"]
    assert (one["key_id"], one["gold"], one["right"]["value"]) == ("ann", 1, 1.0)


@pytest.mark.parametrize(
    ("team", "scope", "path", "status"),
    [
        ("other", "lead", "/quality?task=message-moderation", 403),
        ("other", "admin", "/quality?task=message-moderation", 200),
        ("trust", "review", "/quality?task=message-moderation", 403),
        ("trust", "review", "/reviews/agreement?task=message-moderation", 403),
        ("other", "lead", "/reviews/agreement?task=message-moderation", 403),
        ("trust", "lead", "/quality", 422),
        ("trust", "lead", "/quality?task=nobodys", 404),
        ("trust", "lead", "/quality?task=message-moderation&start=2026-02-01&end=2026-01-01", 422),
    ],
)
async def test_everybody_else_does_not(served, team: str, scope: str, path: str, status: int) -> None:
    """Another team's task is theirs; a reviewer judges without knowing how others do."""
    assert (await served.client.get(path, headers=_as(served.memory.key(team, scope)))).status_code == status


def _as(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
