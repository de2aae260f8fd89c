"""The demo's caller: a small service that hears the outcomes of held items, checks who sent them, and says so."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
from rich.console import Console
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

_LONGEST = 1_048_576


@contextmanager
def receiving(secret: str, console: Console) -> Iterator[str]:
    """The address of a receiver that prints `outcome received`, until the end of the block."""
    # Outcomes come several at a time, each on its own thread: without it one's line gets lost in another's.
    speaking = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("content-length", "0")), _LONGEST))
            try:
                Webhook(secret).verify(body.decode(), dict(self.headers.items()))
            except WebhookVerificationError:
                self.send_response(401)
            else:
                said = msgspec.json.decode(body)["data"]
                policies = ", ".join(said["policies"])
                with speaking:
                    console.out(f"outcome received: {said['outcome']} {policies} (review {said['review_id']})")
                self.send_response(204)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """The outcome is what is said."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/outcomes"
        finally:
            server.shutdown()
