"""`gateway lab` train-cnn, tune-llm, previous, loso, curve, export: what makes weights."""

from pathlib import Path

import click

from gateway.cli.lab import options, places
from gateway.cli.lab.group import command
from gateway.cli.lab.options import PATH, SHARE, TASK


@command(
    options.task, options.sources, options.corpus, options.base, options.readings, options.out,
    click.option("--learning-rate", type=float, default=1.2e-3, show_default=True),
    click.option("--batch", type=int, default=64, show_default=True),
    options.threads, options.seed,
    click.option("--epochs", type=int, default=6, show_default=True),
    click.option("--teacher", type=PATH, help="Adapter of a tuned LLM to distil from; it reads rows into --readings."),
    click.option("--teacher-weight", type=SHARE, default=0.5, show_default=True, help="The LLM's share in a target."),
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
        sources=_text(places.sources_or_none(sources)), corpus=str(places.corpus_at(task, corpus)), out=str(out),
        base=_text(base), epochs=epochs, threads=threads, seed=seed, learning_rate=learning_rate, batch=batch,
    )  # fmt: skip
    taught = None if teacher is None else LlmTeacher(
        asked=load_task(places.home(), task).asked(places.base_at(base), teacher), readings=readings,
        weight=teacher_weight, rows=teacher_rows, threads=threads,
    )  # fmt: skip
    click.echo(run(config, taught))


@command(
    options.sources, options.corpus, options.base, options.out, options.threads, options.seed,
    click.option("--learning-rate", type=float, default=1e-3, show_default=True),
    click.option("--epochs", type=int, default=1, show_default=True),
    options.mix,
    click.option("--from-adapter", type=PATH, help="Begin with this adapter's weights instead of fresh ones."),
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
    prompts, corpus = places.home() / "prompts", places.corpus_at(TASK, corpus)
    base, folder, mix = places.base_at(base), places.sources_at(sources), read_mix(mix_file, seed)
    click.echo(tune_moderation(config, mix, base, prompts, folder, corpus, out, start=from_adapter))


@command(options.task, options.sources, options.corpus, options.out)
def previous(task: str, sources: Path | None, corpus: Path | None, out: Path) -> None:
    """Train the previous system's CNN, choose its threshold, and freeze both in the task's folder."""
    from gateway.lab.train_previous import freeze_previous, plain_config

    config = plain_config(places.sources_or_none(sources), places.corpus_at(task, corpus), out)
    threshold = freeze_previous(config, places.task_folder(task) / "previous")
    click.echo(f"threshold {threshold}")


@command(
    options.sources, options.corpus, options.base, options.out, options.threads, options.seed,
    click.option("--system", type=click.Choice(["cnn", "llm"]), default="cnn", show_default=True),
    click.option("--epochs", type=int, help="Default: 3 for the prefilter, 1 for the LLM."),
    click.option("--learning-rate", type=float, help="Default: the system's own."),
    click.option("--batch", type=int, default=64, show_default=True, help="Of the prefilter."),
    options.mix,
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

    folder, corpus = places.sources_at(sources), places.corpus_at(TASK, corpus)
    if system == "llm":
        config = TuneConfig(threads=threads, seed=seed, epochs=epochs or 1, learning_rate=learning_rate or 1e-3)
        train = llm_trainer(LlmPlan(config, read_mix(mix_file, seed), places.base_at(base), places.home(), corpus))
    else:
        train = cnn_trainer(CnnConfig(
            sources=str(folder), corpus=str(corpus), out=str(out), base=_text(base), epochs=epochs or 3, seed=seed,
            threads=threads, learning_rate=learning_rate or 1.2e-3, batch=batch,
        ))  # fmt: skip
    click.echo("\n".join(markdown(leave_one_out(train, folder, out / system))))


@command(
    options.sources, options.corpus, options.base, options.out, options.threads, options.seed,
    click.option("--data", "file", type=PATH, required=True, help="The set that each size is measured on."),
    click.option("--size", "sizes", type=int, multiple=True, help="Rows to tune on; repeatable."),
    options.mix,
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
        TuneConfig(threads=threads, seed=seed), read_mix(mix_file, seed), places.base_at(base), places.home(),
        places.corpus_at(TASK, corpus),
    )  # fmt: skip
    for size, found in learning_curve(plan, places.sources_at(sources), read_labelled(file), out, sizes or SIZES):
        click.echo(f"{size:7} rows: AUC {found}")


@command(
    options.task, options.base, options.adapter, options.out, options.threads,
    click.option("--data", "file", type=PATH, help="Also compare the scores of a file's rows before and after."),
    click.option("--rows", type=click.IntRange(1), default=60, show_default=True, help="How many of the file's rows."),
)  # fmt: skip
def export(
    task: str, base: Path | None, adapter: Path | None, out: Path, threads: int, file: Path | None, rows: int
) -> None:
    """Merge base and adapter into a folder that TGI, vLLM and transformers load, and check it."""
    from gateway.lab.evaluate import read_labelled
    from gateway.lab.merge import export_merged, rounding
    from gateway.lab.systems import load_task

    base, adapter = places.base_at(base), places.adapter_at(task, adapter)
    compared = read_labelled(file)[:rows] if file is not None else []
    gap = export_merged(base, adapter, out)
    click.echo(f"{out}: largest difference of a logit {gap:.4f}")
    if compared:
        found = rounding(load_task(places.home(), task), base, adapter, out, compared, threads=threads)
        click.echo(
            f"{found.rows} rows: calibrated scores in float32 and as exported differ by {found.mean:.4f} on average, "
            f"{found.largest:.4f} at most; {found.decisions} decisions differ"
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
