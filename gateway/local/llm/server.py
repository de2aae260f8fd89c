"""Loads the model and its adapters, and serves them until told to stop."""

import asyncio
import copy
import hashlib
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

import structlog
import torch
from granian.constants import Interfaces
from granian.server.embed import Server
from litestar import Litestar
from msgspec import Struct

from gateway import __version__
from gateway.adapters.causal_lm import load_adapter, load_base, load_tokenizer, pick_dtype
from gateway.local.llm.app import Serving, build_app
from gateway.local.llm.desk import Desk
from gateway.local.llm.engine import Engine, Limits
from gateway.local.llm.metrics import Metrics
from gateway.local.llm.text import Text
from gateway.local.llm.validation import Bounds
from gateway.local.llm.wire import Info

log = structlog.get_logger()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Options(Struct, frozen=True, kw_only=True):
    """What `gateway model serve` can be told. `dtype` and `model_id` are found out where they are not given.

    `threads` is torch's; None takes what torch finds. `prefix_tokens` is the size of the prefix cache, 0 for none.
    """

    model_id: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    max_concurrent_requests: int = 128
    max_input_tokens: int | None = None
    max_total_tokens: int = 4096
    max_top_n_tokens: int = 5
    max_stop_sequences: int = 4
    unknown_adapter: Literal["base", "reject"] = "base"
    chat_format: str = "chatml"
    prefix_tokens: int = 8192


def serve(model: Path, adapters: Mapping[str, Path], host: str = "127.0.0.1", port: int = 8080, **options: Any) -> None:
    """Serve a model folder with LoRA adapters by name; `options` are the fields of `Options`.

    Returns after SIGINT or SIGTERM. Raises ModelFilesError for a folder that cannot be loaded.
    """
    asyncio.run(_serve_until_signal(load(model, adapters, Options(**options)), host, port))


@contextmanager
def running(app: Litestar, host: str, port: int) -> Iterator[str]:
    """The app on a thread of this process, for tests and for the lab; yields its base URL."""
    stop, loop = asyncio.Event(), asyncio.new_event_loop()
    ready = Event()
    thread = Thread(target=loop.run_until_complete, args=(_serve(app, host, port, stop, ready),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://{host}:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def load(model: Path, adapters: Mapping[str, Path], options: Options) -> Litestar:
    """Everything that has to be ready before the first request. Raises ModelFilesError."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype = pick_dtype() if options.dtype == "auto" else DTYPES[options.dtype]
    models = _load_models(model, adapters, dtype)
    text, metrics = _load_text(model, models[""]), Metrics()
    engine = Engine(models, text, metrics, Limits(prefix_tokens=options.prefix_tokens))
    bounds = _bounds(options, models[""], frozenset(adapters))
    serving = Serving(
        desk=Desk(engine, options.max_concurrent_requests),
        text=text,
        grammars=text.grammars(_vocabulary(models[""])),
        bounds=bounds,
        info=_info(model, adapters, options, bounds, dtype),
        metrics=metrics,
        chat_format=options.chat_format,
    )
    log.info("model_loaded", model_id=serving.info.model_id, dtype=str(dtype), adapters=sorted(adapters))
    return build_app(serving, lifespan=[_engine_runs(engine)])


def _engine_runs(engine: Engine) -> Any:
    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    return lifespan


def _load_models(folder: Path, adapters: Mapping[str, Path], dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """The base model under "", and for each adapter a copy that it is merged into.

    Merged in float32 and rounded once. The embeddings, a fifth of a small model, are one tensor for all.
    """
    base = load_base(folder)
    models: dict[str, torch.nn.Module] = {"": base}
    for name, path in adapters.items():
        shared = {id(weight): weight for weight in base.get_input_embeddings().parameters()}
        models[name] = load_adapter(copy.deepcopy(base, shared), path, merge=True)
    for module in models.values():
        module.to(dtype).requires_grad_(False)
    return models


def _load_text(folder: Path, base: torch.nn.Module) -> Text:
    tokenizer: Any = load_tokenizer(folder)
    model: Any = base
    ends = (model.config.eos_token_id, model.generation_config.eos_token_id, tokenizer.eos_token_id)
    flat = [end for ids in ends for end in (ids if isinstance(ids, list) else [ids]) if end is not None]
    return Text(tokenizer.backend_tokenizer, flat)


def _vocabulary(base: torch.nn.Module) -> int:
    config: Any = base.config
    return int(config.vocab_size)


def _bounds(options: Options, base: torch.nn.Module, adapters: frozenset[str]) -> Bounds:
    config: Any = base.config
    total = min(options.max_total_tokens, int(config.max_position_embeddings))
    return Bounds(
        max_input_tokens=min(options.max_input_tokens or total - 1, total - 1),
        max_total_tokens=total,
        max_top_n_tokens=options.max_top_n_tokens,
        max_stop_sequences=options.max_stop_sequences,
        adapters=adapters,
        reject_unknown_adapter=options.unknown_adapter == "reject",
    )


def _info(model: Path, adapters: Mapping[str, Path], options: Options, bounds: Bounds, dtype: torch.dtype) -> Info:
    weights = _weights(model)
    return Info(
        model_id=options.model_id or (weights[0].name.split(".")[0] if weights[0].suffix == ".gguf" else model.name),
        model_sha=_sha256(weights),
        model_dtype=str(dtype),
        max_concurrent_requests=options.max_concurrent_requests,
        max_stop_sequences=bounds.max_stop_sequences,
        max_input_tokens=bounds.max_input_tokens,
        max_total_tokens=bounds.max_total_tokens,
        max_top_n_tokens=bounds.max_top_n_tokens,
        version=__version__,
        adapters={name: _sha256(_weights(path)) for name, path in adapters.items()},
    )


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf")) or sorted(folder.glob("*.bin"))


def _sha256(files: list[Path]) -> str:
    """Of the files' bytes, one after the other: for a single file the sum that `sha256sum` prints."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


async def _serve_until_signal(app: Litestar, host: str, port: int) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    log.info("model_server_starts", url=f"http://{host}:{port}")
    await _serve(app, host, port, stop, None)


async def _serve(app: Litestar, host: str, port: int, stop: asyncio.Event, ready: Event | None) -> None:
    server = Server(app, host, port, interface=Interfaces.ASGI, log_access=False, log_enabled=False, websockets=False)
    serving = asyncio.create_task(server.serve())
    await _until_listening(host, port, serving)
    if ready:
        ready.set()
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not serving.done():
        server.stop()  # type: ignore[no-untyped-call]
    await serving


async def _until_listening(host: str, port: int, serving: "asyncio.Task[None]") -> None:
    while not serving.done():
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(0.01)
