"""`gateway lab` eval, attack, reproduce, card: how good it is."""

import sys
from pathlib import Path

import click

from gateway.cli.lab import options, places
from gateway.cli.lab.group import command
from gateway.cli.lab.options import PATH


@command(
    options.task, options.base, options.adapter, options.readings, options.threads, options.out, options.without,
    click.option("--data", "file", type=PATH, required=True, help="A frozen set, or a CSV, JSONL or Parquet file."),
    click.option("--curve", type=PATH, help="curve.json of `lab curve`, for the report."),
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
        home=places.home(), task=task, data=file, out=out, base=places.base_at(base),
        adapter=places.adapter_at(task, adapter), readings=readings, systems=_systems(without), threads=threads,
        learning_curve=curve,
    ))  # fmt: skip
    for name, system in found.systems.items():
        click.echo(f"{name:10} AUC within sources {system.auc}, pooled {system.pooled_auc}")
    click.echo(f"report: {out / 'report.md'}")


@command(
    options.task, options.base, options.adapter, options.readings, options.threads, options.out,
    click.option("--suite", type=PATH, help="Another suite than the task's own."),
)  # fmt: skip
def attack(
    task: str, base: Path | None, adapter: Path | None, readings: Path, threads: int, out: Path, suite: Path | None
) -> None:
    """Run the functional and adversarial suite through the cascade."""
    from gateway.lab.attack import attack as run

    found = run(
        places.home(), task, out, places.base_at(base), readings, adapter=places.adapter_at(task, adapter), suite=suite,
        threads=threads,
    )  # fmt: skip
    click.echo(f"functional {found.functional_pass_rate}, injections {found.injection_success}")
    click.echo(f"recall kept under disguise {found.recall_kept}; report: {out / 'report.md'}")


@command(
    options.task, options.sources, options.corpus, options.base, options.adapter, options.readings, options.threads,
    options.out, options.without,
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
        home=places.home(), task=task, data=out, out=out, base=places.base_at(base),
        adapter=places.adapter_at(task, adapter), readings=readings, threads=threads, systems=_systems(without),
    )  # fmt: skip
    folder, own = places.sources_at(sources), places.corpus_at(task, corpus)
    config = ReproduceConfig(evaluation=evaluation, sources=folder, corpus=own, sets=sets or None)
    if write:
        made = write_results(config)
        click.echo("\n".join([*(f"skipped: {reason}" for reason in made.skipped), *stated(made.results)]))
        return
    found = agreement(config)
    click.echo("\n".join([*(f"skipped: {reason}" for reason in found.skipped), *map(str, found.differences)]))
    click.echo(f"{found.compared} hashes and numbers compared, {len(found.differences)} differ. {STATED}.")
    sys.exit(1 if found.differences else 0)


@command(options.task)
def card(task: str) -> None:
    """Write data, training, calibration and results into the task's MODEL_CARD.md, between its markers."""
    from gateway.lab.card import write_card

    click.echo(write_card(places.task_folder(task)))


def _systems(without: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in ("previous", "prompted") if name not in without)
