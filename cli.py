"""The command `jzi`: its subcommands, error messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from jzi.commands.area import info, init, tile
from jzi.commands.cache import cache
from jzi.commands.datasets.dataset import dataset_group
from jzi.commands.datasets.push import push_command
from jzi.commands.demo import demo
from jzi.commands.encode import encode_map_command, encode_queries_command
from jzi.commands.estimate import estimate
from jzi.commands.evaluate import evaluate_command
from jzi.commands.locate import locate
from jzi.commands.rerank import rerank_group
from jzi.commands.serve import serve
from jzi.commands.settings import settings_command
from jzi.commands.shared.common import Suggesting
from jzi.commands.shared.failures import options_explained, usage_error
from jzi.commands.shared.process import Termination, handled_warnings_ignored, log_progress_seldom
from jzi.commands.training.ablate import ablate
from jzi.commands.training.checkpoint import import_checkpoint_command
from jzi.commands.training.finetune import finetune
from jzi.commands.training.fusion import train_fusion
from jzi.commands.training.refiner import train_refiner_command
from jzi.commands.training.retrieve import index, train_retriever_command
from jzi.commands.training.train import train_decoder_command
from jzi.commands.training.transfer import transfer
from jzi.encode.threads import bound_spinning
from jzi.version import __version__

#: Commands that resume when they are run again after an interruption.
RESUMABLE = (
    "finetune",
    "encode-map",
    "encode-queries",
    "train-decoder",
    "ablate",
    "train-retriever",
    "index",
    "demo",
    "train-refiner",
    "rerank",
    "dataset",
    "push",
)


class Commands(Suggesting):
    """Group of commands that prints every error as one sentence, without a traceback
    (`jzi.commands.shared.failures`).
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of their use."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; only the outermost one changes process settings and handles interrupts."""
        if ctx.parent is not None:  # called by the demo
            return self._run(ctx)
        bound_spinning()
        log_progress_seldom()
        with handled_warnings_ignored(), Termination() as termination:
            try:
                return self._run(ctx)
            except KeyboardInterrupt:
                more = "; finished work is kept, run the same command again to resume"
                more = more if ctx.invoked_subcommand in RESUMABLE else ""
                click.echo(f"jzi: interrupted{more}", err=True)
                ctx.exit(termination.exit_code)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As that of click, with one sentence for a wrong option."""
        with options_explained():
            return super().make_context(*args, **extra)

    def _run(self, ctx: click.Context) -> Any:
        try:
            with options_explained(ctx):
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click handles these; the last is `jzi ... | head`
        except Exception as error:
            raise usage_error(error) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Locate street-level photos by zooming into an overhead map.

    \b
    Once for an area:   jzi init --map ortho.tif --queries photos/
                        jzi finetune (optional: adapts the encoder to the area)
                        jzi encode-map, encode-queries, train-decoder, evaluate
    Then for a photo:   jzi locate photo.jpg
    Try everything:     jzi demo
    """


for command in (
    init,
    tile,
    info,
    settings_command,
    finetune,
    estimate,
    encode_map_command,
    encode_queries_command,
    train_decoder_command,
    train_refiner_command,
    transfer,
    evaluate_command,
    ablate,
    locate,
    rerank_group,
    serve,
    push_command,
    import_checkpoint_command,
    train_retriever_command,
    index,
    train_fusion,
    cache,
    dataset_group,
    demo,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
