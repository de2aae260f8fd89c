"""`gateway lab` calibrate, simulate, prompted: thresholds, prompts, and what they would do."""

from pathlib import Path
from typing import Any

import click

from gateway.cli.lab import options, places
from gateway.cli.lab.group import command, show
from gateway.cli.lab.options import PATH, SHARE


@command(
    options.task, options.sources, options.corpus, options.base, options.adapter, options.readings, options.threads,
    click.option("--recall", type=float, default=0.95, show_default=True, help="What the prefilter must keep."),
    click.option("--accept-above", type=SHARE, help="The LLM's threshold; default: best F1 of the cascade."),
    click.option(
        "--hard-negative-fp", type=SHARE,
        help="Take the LLM's lowest threshold that flags at most this share of the marketplace's hard negatives.",
    ),
    click.option("--per-label", type=int, default=150, show_default=True, help="Most rows of a source and label."),
    options.from_reviews,
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

        show(apply(_refit(task, from_reviews, corpus, base, adapter, readings, threads, recall, accept_above)))
        return

    show(run(CalibrateConfig(
        home=places.home(), task=task, sources=places.sources_at(sources), corpus=places.corpus_at(task, corpus),
        base=places.base_at(base), adapter=places.adapter_at(task, adapter), readings=readings, threads=threads,
        settings=Settings(
            recall=recall, accept_above=accept_above, hard_negative_fp=hard_negative_fp, per_label=per_label
        ),
    )))  # fmt: skip


@command(
    options.task, options.corpus, options.base, options.adapter, options.readings, options.threads,
    click.option("--run", type=PATH, help="An evaluation's folder."),
    options.from_reviews,
    click.option("--recall", type=float, required=True, help="What the prefilter is to keep."),
    click.option("--accept-above", type=SHARE, help="With --from-reviews: the LLM's threshold; default: best F1."),
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

        show(simulated(places.home(), task, run, recall))
    elif from_reviews is not None:
        from gateway.lab.from_reviews import refit

        show(refit(_refit(task, from_reviews, corpus, base, adapter, readings, threads, recall, accept_above)))


@command(options.task, options.sources, options.corpus, options.base, options.readings, options.threads)
def prompted(
    task: str, sources: Path | None, corpus: Path | None, base: Path | None, readings: Path, threads: int
) -> None:
    """Choose the prompted base model's prompt and threshold on validation rows."""
    from gateway.lab import prompted as prompts
    from gateway.lab.systems import load_task

    loaded = load_task(places.home(), task)
    rows = prompts.validation_rows(places.sources_at(sources), places.corpus_at(task, corpus))
    choice = prompts.choose(loaded, places.base_at(base), rows, readings, threads=threads)
    click.echo(prompts.write(choice, loaded.folder))


def _refit(
    task: str, labels: Path, corpus: Path | None, base: Path | None, adapter: Path | None, readings: Path,
    threads: int, recall: float, accept_above: float | None,
) -> Any:  # fmt: skip
    from gateway.lab.from_reviews import RefitConfig

    return RefitConfig(
        home=places.home(), task=task, labels=labels, corpus=places.corpus_at(task, corpus), base=places.base_at(base),
        adapter=places.adapter_at(task, adapter), readings=readings, recall=recall, accept_above=accept_above,
        threads=threads,
    )  # fmt: skip
