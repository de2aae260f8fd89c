"""gateway lab."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog
from rich.console import Console

from gateway import settings as process_settings
from gateway.core.problems import Unusable

TASK = "message-moderation"
_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1)
_SEED = 20240611


class _Lab(click.Group):
    """What the disk refuses is said like all else that cannot be used: its reason, status 2, no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unusable(str(error)) from error


def _command(group: click.Group, *options: Callable[..., Any], name: str | None = None) -> Callable[..., click.Command]:
    """A subcommand with shared options."""

    def decorate(function: Callable[..., None]) -> click.Command:
        run = function
        for option in reversed(options):
            run = option(run)
        return group.command(name or function.__name__.replace("_", "-"))(run)

    return decorate


_task = click.option("--task", default=TASK, show_default=True, help="The task's name in tasks/.")
_out = click.option("--out", type=_PATH, required=True, help="Run folder: written whole, or left as it was.")
_base = click.option("--base", type=_PATH, help="Folder of the base model. Default: the fetched one.")
_adapter = click.option("--adapter", type=_PATH, help="Adapter folder. Default: adapter/ in the task's folder.")
_readings = click.option(
    "--readings", type=_PATH, default=Path("runs/readings"), show_default=True, help="Kept readings of LLMs."
)
_threads = click.option("--threads", type=int, default=1, show_default=True)
_sources = click.option("--sources", type=_PATH, help="Folder of public sources. [env: GATEWAY_DATA_DIR]")
_corpus = click.option("--corpus", type=_PATH, help="Own corpus. Default: corpus.jsonl.gz in the task's folder.")
_cnn_rate = click.option("--learning-rate", type=float, default=1.2e-3, show_default=True)
_cnn_batch = click.option("--batch", type=int, default=64, show_default=True)
_without = click.option(
    "--without", multiple=True, type=click.Choice(["previous", "prompted"]), help="Leave a system out; repeatable."
)
_mix = click.option(
    "--mix", "mix_file", type=_PATH, help="TOML or JSON of what the LLM is tuned on; its keys are those of MixConfig."
)
_from_reviews = click.option("--from-reviews", type=_PATH, help="A file of `gateway reviews export`, with its weights.")
_seed = click.option("--seed", type=int, default=_SEED, show_default=True)


@click.group(cls=_Lab)
@click.pass_context
def lab(ctx: click.Context) -> None:
    """Train, calibrate, evaluate and attack; every run leaves a folder."""
    if not structlog.is_configured():
        # A stage that fails on one of ten thousand rows is a number in the report, not a line on the terminal.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        ctx.call_on_close(structlog.reset_defaults)


@_command(
    lab, _sources, _corpus, _out,
    click.option("--from-upstream", is_flag=True, help="Rebuild the public sources from where they were published."),
    click.option("--source", "names", multiple=True, help="With --from-upstream: one of them; repeatable."),
    click.option("--upstream-url", help="With --from-upstream: a mirror with the publishers' paths."),
)  # fmt: skip
def data(
    sources: Path | None, corpus: Path | None, out: Path, from_upstream: bool, names: tuple[str, ...],
    upstream_url: str | None,
) -> None:  # fmt: skip
    """Build the frozen sets eval-1000, eval-10k and stream, with a manifest of counts and hashes.

    With --from-upstream, the public sources instead: each is compared with its pinned hash and with --sources.
    """
    if from_upstream:
        _from_upstream(names, out, upstream_url, _sources_or_none(sources))
        return
    if names or upstream_url is not None:
        raise click.UsageError("--source and --upstream-url go with --from-upstream")
    from gateway.lab.frozen import build_frozen

    _show(build_frozen(_sources_at(sources), _corpus_at(TASK, corpus), out))


def _from_upstream(names: tuple[str, ...], out: Path, host: str | None, at_hand: Path | None) -> None:
    from gateway.lab.upstream.build import rebuild
    from gateway.lab.upstream.download import Downloads
    from gateway.lab.upstream.sources import UPSTREAM

    if unknown := sorted(set(names) - set(UPSTREAM)):
        raise click.UsageError(f"there is no source {', '.join(unknown)}; known: {', '.join(UPSTREAM)}")
    with Downloads() as fetch:
        for built in rebuild(names or tuple(UPSTREAM), out, fetch, host=host, at_hand=at_hand):
            beside = built.at_hand
            click.echo(f"{built.source}: {built.rows} rows, {built.verdict}" + (
                "" if beside is None
                else f"; beside those at hand {beside.added} more, {beside.missing} fewer, {beside.changed} other"
            ))  # fmt: skip


@_command(lab, click.argument("folder", type=_PATH), click.argument("hands", nargs=-1, required=True), _out)
def pack_corpus(folder: Path, hands: tuple[str, ...], out: Path) -> None:
    """Check the HANDS' files in FOLDER against shortcuts and pack them into one corpus."""
    from gateway.lab.corpus import pack_corpus as run

    _show(run(folder, out, hands)._asdict())


@_command(lab, click.argument("source", type=_PATH), _out)
def pack_suite(source: Path, out: Path) -> None:
    """Check the cases of SOURCE and pack them into the suite that `attack` reads."""
    from gateway.lab.attack import pack_suite as run

    click.echo(f"{run(source, out)} cases")


@_command(
    lab, _task, _sources, _corpus, _base, _readings, _out, _cnn_rate, _cnn_batch, _threads, _seed,
    click.option("--epochs", type=int, default=6, show_default=True),
    click.option("--teacher", type=_PATH, help="Adapter of a tuned LLM to distil from; it reads rows into --readings."),
    click.option("--teacher-weight", type=_SHARE, default=0.5, show_default=True, help="The LLM's share in a target."),
    click.option("--teacher-rows", type=int, default=20_000, show_default=True, help="Most rows that the LLM reads."),
)  # fmt: skip
def train_cnn(
    task: str, sources: Path | None, corpus: Path | None, base: Path | None, readings: Path, out: Path,
    learning_rate: float, batch: int, threads: int, seed: int, epochs: int, teacher: Path | None,
    teacher_weight: float, teacher_rows: int,
) -> None:  # fmt: skip
    """Train the prefilter. Without --base, words start from random vectors."""
    from gateway.lab.distill import LlmTeacher
    from gateway.lab.systems import load_task
    from gateway.lab.train_cnn import CnnConfig
    from gateway.lab.train_cnn import train_cnn as run

    config = CnnConfig(
        sources=_text(_sources_or_none(sources)), corpus=str(_corpus_at(task, corpus)), out=str(out), base=_text(base),
        epochs=epochs, threads=threads, seed=seed, learning_rate=learning_rate, batch=batch,
    )  # fmt: skip
    taught = None if teacher is None else LlmTeacher(
        asked=load_task(_settings().home_path, task).asked(_base_at(base), teacher), readings=readings,
        weight=teacher_weight, rows=teacher_rows, threads=threads,
    )  # fmt: skip
    click.echo(run(config, taught))


@_command(
    lab, _sources, _corpus, _base, _out, _threads, _seed,
    click.option("--learning-rate", type=float, default=1e-3, show_default=True),
    click.option("--epochs", type=int, default=1, show_default=True),
    _mix,
    click.option("--from-adapter", type=_PATH, help="Begin with this adapter's weights instead of fresh ones."),
)  # fmt: skip
def tune_llm(
    sources: Path | None, corpus: Path | None, base: Path | None, out: Path, threads: int, seed: int,
    learning_rate: float, epochs: int, mix_file: Path | None, from_adapter: Path | None,
) -> None:  # fmt: skip
    """Tune the adapter with LoRA; the same command goes on where a stopped run was."""
    from gateway.lab.mix import read_mix
    from gateway.lab.moderation import tune_moderation
    from gateway.lab.tune import TuneConfig

    config = TuneConfig(learning_rate=learning_rate, epochs=epochs, threads=threads, seed=seed)
    prompts, corpus = _settings().home_path / "prompts", _corpus_at(TASK, corpus)
    mix = read_mix(mix_file, seed)
    click.echo(
        tune_moderation(config, mix, _base_at(base), prompts, _sources_at(sources), corpus, out, start=from_adapter)
    )


@_command(
    lab, _task, _sources, _corpus, _base, _adapter, _readings, _threads,
    click.option("--recall", type=float, default=0.95, show_default=True, help="What the prefilter must keep."),
    click.option("--accept-above", type=_SHARE, help="The LLM's threshold; default: best F1 of the cascade."),
    click.option(
        "--hard-negative-fp", type=_SHARE,
        help="Take the LLM's lowest threshold that flags at most this share of the marketplace's hard negatives.",
    ),
    click.option("--per-label", type=int, default=150, show_default=True, help="Most rows of a source and label."),
    _from_reviews,
)  # fmt: skip
def calibrate(
    task: str, sources: Path | None, corpus: Path | None, base: Path | None, adapter: Path | None, readings: Path,
    threads: int, recall: float, accept_above: float | None, hard_negative_fp: float | None, per_label: int,
    from_reviews: Path | None,
) -> None:  # fmt: skip
    """Fit the LLM's calibration, choose both thresholds, write them into the task's folder, and say what they do."""
    from gateway.lab.calibrate_task import CalibrateConfig, Settings
    from gateway.lab.calibrate_task import calibrate as run

    if from_reviews is not None:
        from gateway.lab.from_reviews import apply

        _show(apply(_refit(task, from_reviews, corpus, base, adapter, readings, threads, recall, accept_above)))
        return

    _show(run(CalibrateConfig(
        home=_settings().home_path, task=task, sources=_sources_at(sources), corpus=_corpus_at(task, corpus),
        base=_base_at(base), adapter=_adapter_at(task, adapter), readings=readings, threads=threads,
        settings=Settings(
            recall=recall, accept_above=accept_above, hard_negative_fp=hard_negative_fp, per_label=per_label
        ),
    )))  # fmt: skip


@_command(
    lab, _task, _corpus, _base, _adapter, _readings, _threads,
    click.option("--run", type=_PATH, help="An evaluation's folder."),
    _from_reviews,
    click.option("--recall", type=float, required=True, help="What the prefilter is to keep."),
    click.option("--accept-above", type=_SHARE, help="With --from-reviews: the LLM's threshold; default: best F1."),
)  # fmt: skip
def simulate(
    task: str, corpus: Path | None, base: Path | None, adapter: Path | None, readings: Path, threads: int,
    run: Path | None, from_reviews: Path | None, recall: float, accept_above: float | None,
) -> None:  # fmt: skip
    """Routing share, cost, recall and flags at another recall of the prefilter; changes nothing.

    On an evaluation's rows, or on what people decided: then now beside what `calibrate --from-reviews` would apply.
    """
    if (run is None) == (from_reviews is None):
        raise click.UsageError("give either --run or --from-reviews")
    if run is not None:
        from gateway.lab.simulate import simulate as simulated

        _show(simulated(_settings().home_path, task, run, recall))
    elif from_reviews is not None:
        from gateway.lab.from_reviews import refit

        _show(refit(_refit(task, from_reviews, corpus, base, adapter, readings, threads, recall, accept_above)))


@_command(
    lab, _task, _base, _adapter, _readings, _threads, _out, _without,
    click.option("--data", "file", type=_PATH, required=True, help="A frozen set, or a CSV, JSONL or Parquet file."),
    click.option("--curve", type=_PATH, help="curve.json of `lab curve`, for the report."),
    name="eval",
)  # fmt: skip
def evaluate(
    task: str, base: Path | None, adapter: Path | None, readings: Path, threads: int, out: Path, file: Path,
    without: tuple[str, ...], curve: Path | None,
) -> None:  # fmt: skip
    """Compare the four systems on the rows of a file; predictions, metrics and a report with plots."""
    from gateway.lab.evaluate import EvalConfig
    from gateway.lab.evaluate import evaluate as run

    found = run(EvalConfig(
        home=_settings().home_path, task=task, data=file, out=out, base=_base_at(base),
        adapter=_adapter_at(task, adapter), readings=readings, systems=_systems(without), threads=threads,
        learning_curve=curve,
    ))  # fmt: skip
    for name, system in found.systems.items():
        click.echo(f"{name:10} AUC within sources {system.auc}, pooled {system.pooled_auc}")
    click.echo(f"report: {out / 'report.md'}")


@_command(
    lab, _task, _base, _adapter, _readings, _threads, _out,
    click.option("--suite", type=_PATH, help="Another suite than the task's own."),
)  # fmt: skip
def attack(
    task: str, base: Path | None, adapter: Path | None, readings: Path, threads: int, out: Path, suite: Path | None
) -> None:
    """Run the functional and adversarial suite through the cascade."""
    from gateway.lab.attack import attack as run

    found = run(
        _settings().home_path, task, out, _base_at(base), readings, adapter=_adapter_at(task, adapter), suite=suite,
        threads=threads,
    )  # fmt: skip
    click.echo(f"functional {found.functional_pass_rate}, injections {found.injection_success}")
    click.echo(f"recall kept under disguise {found.recall_kept}; report: {out / 'report.md'}")


@_command(lab, _task, _sources, _corpus, _base, _readings, _threads)
def prompted(
    task: str, sources: Path | None, corpus: Path | None, base: Path | None, readings: Path, threads: int
) -> None:
    """Choose the prompted base model's prompt and threshold on validation rows."""
    from gateway.lab import prompted as prompts
    from gateway.lab.systems import load_task

    loaded = load_task(_settings().home_path, task)
    rows = prompts.validation_rows(_sources_at(sources), _corpus_at(task, corpus))
    choice = prompts.choose(loaded, _base_at(base), rows, readings, threads=threads)
    click.echo(prompts.write(choice, loaded.folder))


@_command(lab, _task, _sources, _corpus, _out)
def previous(task: str, sources: Path | None, corpus: Path | None, out: Path) -> None:
    """Train the previous system's CNN, choose its threshold, and freeze both in the task's folder."""
    from gateway.lab.train_previous import freeze_previous, plain_config

    config = plain_config(_sources_or_none(sources), _corpus_at(task, corpus), out)
    threshold = freeze_previous(config, _settings().home_path / "tasks" / task / "previous")
    click.echo(f"threshold {threshold}")


@_command(
    lab, _sources, _corpus, _base, _out, _threads, _seed,
    click.option("--system", type=click.Choice(["cnn", "llm"]), default="cnn", show_default=True),
    click.option("--epochs", type=int, help="Default: 3 for the prefilter, 1 for the LLM."),
    click.option("--learning-rate", type=float, help="Default: the system's own."),
    click.option("--batch", type=int, default=64, show_default=True, help="Of the prefilter."),
    _mix,
)  # fmt: skip
def loso(
    sources: Path | None, corpus: Path | None, base: Path | None, out: Path, threads: int, seed: int, system: str,
    epochs: int | None, learning_rate: float | None, batch: int, mix_file: Path | None,
) -> None:  # fmt: skip
    """Leave one source out: a model on sources that it never saw. Finished trainings are kept. Hours for the LLM."""
    from gateway.lab.loso import leave_one_out, markdown
    from gateway.lab.mix import read_mix
    from gateway.lab.train_cnn import CnnConfig
    from gateway.lab.trainers import LlmPlan, cnn_trainer, llm_trainer
    from gateway.lab.tune import TuneConfig

    folder, corpus = _sources_at(sources), _corpus_at(TASK, corpus)
    if system == "llm":
        config = TuneConfig(threads=threads, seed=seed, epochs=epochs or 1, learning_rate=learning_rate or 1e-3)
        train = llm_trainer(LlmPlan(config, read_mix(mix_file, seed), _base_at(base), _settings().home_path, corpus))
    else:
        train = cnn_trainer(CnnConfig(
            sources=str(folder), corpus=str(corpus), out=str(out), base=_text(base), epochs=epochs or 3, seed=seed,
            threads=threads, learning_rate=learning_rate or 1.2e-3, batch=batch,
        ))  # fmt: skip
    click.echo("\n".join(markdown(leave_one_out(train, folder, out / system))))


@_command(
    lab, _sources, _corpus, _base, _out, _threads, _seed,
    click.option("--data", "file", type=_PATH, required=True, help="The set that each size is measured on."),
    click.option("--size", "sizes", type=int, multiple=True, help="Rows to tune on; repeatable."),
    _mix,
)  # fmt: skip
def curve(
    sources: Path | None, corpus: Path | None, base: Path | None, out: Path, threads: int, seed: int, file: Path,
    sizes: tuple[int, ...], mix_file: Path | None,
) -> None:  # fmt: skip
    """The learning curve of the tuned LLM. Hours on a CPU; finished sizes are kept."""
    from gateway.lab.curve import SIZES, learning_curve
    from gateway.lab.evaluate import read_labelled
    from gateway.lab.mix import read_mix
    from gateway.lab.trainers import LlmPlan
    from gateway.lab.tune import TuneConfig

    plan = LlmPlan(
        TuneConfig(threads=threads, seed=seed), read_mix(mix_file, seed), _base_at(base), _settings().home_path,
        _corpus_at(TASK, corpus),
    )  # fmt: skip
    for size, found in learning_curve(plan, _sources_at(sources), read_labelled(file), out, sizes or SIZES):
        click.echo(f"{size:7} rows: AUC {found}")


@_command(
    lab, _task, _base, _adapter, _out, _threads,
    click.option("--data", "file", type=_PATH, help="Also compare the scores of a file's rows before and after."),
    click.option("--rows", type=click.IntRange(1), default=60, show_default=True, help="How many of the file's rows."),
)  # fmt: skip
def export(
    task: str, base: Path | None, adapter: Path | None, out: Path, threads: int, file: Path | None, rows: int
) -> None:
    """Merge base and adapter into a folder that TGI, vLLM and transformers load, and check it."""
    from gateway.lab.evaluate import read_labelled
    from gateway.lab.merge import export_merged, rounding
    from gateway.lab.systems import load_task

    base, adapter = _base_at(base), _adapter_at(task, adapter)
    compared = read_labelled(file)[:rows] if file is not None else []
    gap = export_merged(base, adapter, out)
    click.echo(f"{out}: largest difference of a logit {gap:.4f}")
    if compared:
        found = rounding(load_task(_settings().home_path, task), base, adapter, out, compared, threads=threads)
        click.echo(
            f"{found.rows} rows: calibrated scores in float32 and as exported differ by {found.mean:.4f} on average, "
            f"{found.largest:.4f} at most; {found.decisions} decisions differ"
        )


@_command(
    lab, _task, _sources, _corpus, _base, _adapter, _readings, _threads, _out, _without,
    click.option("--set", "sets", multiple=True, help="One of the frozen sets; repeatable. Default: all."),
    click.option("--write", is_flag=True, help="Write the results into the task's folder instead of comparing."),
)  # fmt: skip
def reproduce(
    task: str, sources: Path | None, corpus: Path | None, base: Path | None, adapter: Path | None, readings: Path,
    threads: int, out: Path, without: tuple[str, ...], sets: tuple[str, ...], write: bool,
) -> None:  # fmt: skip
    """Rebuild the frozen sets, calibrate, evaluate, attack, and compare with the committed results.

    Status 0 where all agree within the tolerance, 1 where something differs, 2 where it cannot be told.
    """
    from gateway.lab.agreement import STATED
    from gateway.lab.evaluate import EvalConfig
    from gateway.lab.reproduce import SETS, ReproduceConfig, agreement, stated, write_results
    from gateway.lab.rows import LabError

    if unknown := set(sets) - set(SETS):
        raise LabError(f"there is no set {', '.join(sorted(unknown))}; known: {', '.join(SETS)}")
    evaluation = EvalConfig(
        home=_settings().home_path, task=task, data=out, out=out, base=_base_at(base),
        adapter=_adapter_at(task, adapter), readings=readings, threads=threads, systems=_systems(without),
    )  # fmt: skip
    config = ReproduceConfig(
        evaluation=evaluation, sources=_sources_at(sources), corpus=_corpus_at(task, corpus), sets=sets or None
    )
    if write:
        made = write_results(config)
        click.echo("\n".join([*(f"skipped: {reason}" for reason in made.skipped), *stated(made.results)]))
        return
    found = agreement(config)
    click.echo("\n".join([*(f"skipped: {reason}" for reason in found.skipped), *map(str, found.differences)]))
    click.echo(f"{found.compared} hashes and numbers compared, {len(found.differences)} differ. {STATED}.")
    sys.exit(1 if found.differences else 0)


@_command(lab, _task)
def card(task: str) -> None:
    """Write data, training, calibration and results into the task's MODEL_CARD.md, between its markers."""
    from gateway.lab.card import write_card

    click.echo(write_card(_settings().home_path / "tasks" / task))


def _refit(
    task: str, labels: Path, corpus: Path | None, base: Path | None, adapter: Path | None, readings: Path,
    threads: int, recall: float, accept_above: float | None,
) -> Any:  # fmt: skip
    from gateway.lab.from_reviews import RefitConfig

    return RefitConfig(
        home=_settings().home_path, task=task, labels=labels, corpus=_corpus_at(task, corpus), base=_base_at(base),
        adapter=_adapter_at(task, adapter), readings=readings, recall=recall, accept_above=accept_above,
        threads=threads,
    )  # fmt: skip


def _settings() -> process_settings.Settings:
    return process_settings.read(os.environ)


def _sources_or_none(given: Path | None) -> Path | None:
    return given or (Path(_settings().data_dir) if _settings().data_dir else None)


def _sources_at(given: Path | None) -> Path:
    from gateway.lab.rows import LabError

    if (found := _sources_or_none(given)) is None or not found.is_dir():
        raise LabError(f"there is no folder of public sources at {found}: give --sources or set GATEWAY_DATA_DIR")
    return found


def _corpus_at(task: str, given: Path | None) -> Path:
    return given or _settings().home_path / "tasks" / task / "corpus.jsonl.gz"


def _adapter_at(task: str, given: Path | None) -> Path:
    return given or _settings().home_path / "tasks" / task / "adapter"


def _base_at(given: Path | None) -> Path:
    from gateway.local.fetch import fetch_model

    return given or fetch_model(_settings().cache_path, Console(stderr=True))


def _systems(without: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in ("previous", "prompted") if name not in without)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _show(value: Any) -> None:
    Console().print_json(msgspec.json.encode(value).decode())
