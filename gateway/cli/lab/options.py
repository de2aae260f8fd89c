"""Options that several subcommands of `gateway lab` have."""

from pathlib import Path

import click

TASK = "message-moderation"
PATH = click.Path(path_type=Path)
SHARE = click.FloatRange(0, 1)
_SEED = 20240611

task = click.option("--task", default=TASK, show_default=True, help="The task's name in tasks/.")
out = click.option("--out", type=PATH, required=True, help="Run folder: written whole, or left as it was.")
base = click.option("--base", type=PATH, help="Folder of the base model. Default: the fetched one.")
adapter = click.option("--adapter", type=PATH, help="Adapter folder. Default: adapter/ in the task's folder.")
readings = click.option(
    "--readings", type=PATH, default=Path("runs/readings"), show_default=True, help="Kept readings of LLMs."
)
threads = click.option("--threads", type=int, default=1, show_default=True)
sources = click.option("--sources", type=PATH, help="Folder of public sources. [env: GATEWAY_DATA_DIR]")
corpus = click.option("--corpus", type=PATH, help="Own corpus. Default: corpus.jsonl.gz in the task's folder.")
without = click.option(
    "--without", multiple=True, type=click.Choice(["previous", "prompted"]), help="Leave a system out; repeatable."
)
mix = click.option(
    "--mix", "mix_file", type=PATH, help="TOML or JSON of what the LLM is tuned on; its keys are those of MixConfig."
)
from_reviews = click.option("--from-reviews", type=PATH, help="A file of `gateway reviews export`, with its weights.")
seed = click.option("--seed", type=int, default=_SEED, show_default=True)
