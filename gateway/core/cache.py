"""What is kept of an answer, and under which key: nothing that shapes an answer is missing from the key."""

import hashlib

import msgspec
from msgspec import Struct

from gateway.core.inference import Decision, Invocation
from gateway.core.task import Cache


class Kept(Struct, frozen=True):
    """An accepted answer and the run that gave it."""

    run_id: str
    decision: Decision


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode


def cache_key(invocation: Invocation, cache: Cache | None) -> str:
    """Whose answer (payer team, unless the task shares between teams), which version of the task, which input."""
    shared = cache is not None and cache.scope == "task"
    whose = "" if shared else invocation.payer_team + "/" + invocation.caller.team
    digest = hashlib.blake2b(digest_size=24)
    for part in (whose, invocation.task, invocation.fingerprint):
        digest.update(part.encode() + b"\0")
    digest.update(invocation.canonical)
    return digest.hexdigest()


def pack(kept: Kept) -> bytes:
    """To the bytes that the store keeps."""
    return _encode(kept)


def unpack(data: bytes) -> Kept | None:
    """From the store's bytes; None where another version of the gateway wrote something else."""
    try:
        return _decode(data)
    except msgspec.DecodeError:
        return None


def canonical_json(value: object) -> bytes:
    """One spelling for equal values: keys sorted, no white space, UTF-8."""
    return msgspec.json.encode(value, order="sorted")
