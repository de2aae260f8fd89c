"""Where children listen."""

import socket

from gateway.local.child import free_port


def test_a_free_port_is_given_to_no_outgoing_connection() -> None:
    """It can be bound, and lies below those that Linux and macOS hand out; what is taken is not offered."""
    ports = {free_port() for _ in range(200)}
    assert len(ports) > 150
    assert all(1024 < port < 32_768 for port in ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.pop()))
