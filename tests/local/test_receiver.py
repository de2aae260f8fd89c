"""The demo's caller."""

import io
from datetime import UTC, datetime

from rich.console import Console

from gateway.adapters.webhooks import HttpSender
from gateway.core.webhooks import Message, Webhook, new_secret
from gateway.local.receiver import receiving

BODY = '{"data": {"review_id": "r1", "outcome": "block", "policies": ["off_platform"]}}'


async def test_it_says_what_was_signed_and_nothing_else() -> None:
    """A webhook as the gateway sends it is printed; one under another secret is refused."""
    said, secret, now = io.StringIO(), new_secret(), datetime.now(UTC)
    message = Message(
        id="m1", team="demo", review_id="r1", body=BODY, status="pending", attempts=1, due_at=now, created_at=now
    )
    sender = HttpSender()
    with receiving(secret, Console(file=said)) as url:
        refused = await sender.send(message, Webhook("demo", url, new_secret(), now))
        assert (refused, said.getvalue()) == ("HTTP 401", "")
        assert await sender.send(message, Webhook("demo", url, secret, now)) is None
    await sender.aclose()
    assert said.getvalue() == "outcome received: block off_platform (review r1)\n"
