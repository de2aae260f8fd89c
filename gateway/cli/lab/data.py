"""`gateway lab` data, pack-corpus, pack-suite: what is trained and measured on."""

from pathlib import Path

import click

from gateway.cli.lab import options, places
from gateway.cli.lab.group import command, show
from gateway.cli.lab.options import PATH, TASK


@command(
    options.sources, options.corpus, options.out,
    click.option("--from-upstream", is_flag=True, help="Rebuild the public sources from where they were published."),
    click.option("--source", "names", multiple=True, help="With --from-upstream: one of them; repeatable."),
    click.option("--upstream-url", help="With --from-upstream: a mirror with the publishers' paths."),
    click.option("--file", "files", type=PATH, multiple=True, help="Your CSV, JSONL or Parquet; repeatable."),
)  # fmt: skip
def data(
    sources: Path | None, corpus: Path | None, out: Path, from_upstream: bool, names: tuple[str, ...],
    upstream_url: str | None, files: tuple[Path, ...],
) -> None:  # fmt: skip
    """Build the frozen sets eval-1000, eval-10k and stream, with a manifest of counts and hashes.

    With --from-upstream, the public sources instead: each is compared with its pinned hash and with --sources.
    With --file, a folder of sources instead: yours, split by group, beside those of --sources.
    """
    if files and from_upstream:
        raise click.UsageError("give either --file or --from-upstream")
    if from_upstream:
        _from_upstream(names, out, upstream_url, places.sources_or_none(sources))
        return
    if names or upstream_url is not None:
        raise click.UsageError("--source and --upstream-url go with --from-upstream")
    if files:
        from gateway.lab.own_sources import add_files

        show(add_files(files, places.sources_or_none(sources), out))
        return
    from gateway.lab.frozen import build_frozen

    show(build_frozen(places.sources_at(sources), places.corpus_at(TASK, corpus), out))


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


@command(click.argument("folder", type=PATH), click.argument("hands", nargs=-1, required=True), options.out)
def pack_corpus(folder: Path, hands: tuple[str, ...], out: Path) -> None:
    """Check the HANDS' files in FOLDER against shortcuts and pack them into one corpus."""
    from gateway.lab.corpus import pack_corpus as run

    show(run(folder, out, hands)._asdict())


@command(click.argument("source", type=PATH), options.out)
def pack_suite(source: Path, out: Path) -> None:
    """Check the cases of SOURCE and pack them into the suite that `attack` reads."""
    from gateway.lab.attack import pack_suite as run

    click.echo(f"{run(source, out)} cases")
