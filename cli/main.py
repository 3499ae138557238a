"""The command line: `ctrnn train`, `evaluate`, `certify`, `list`."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ctrnn_assembly import __version__
from ctrnn_assembly.errors import CtrnnError
from ctrnn_cli.bench import bench_command
from ctrnn_cli.catalogue import list_command
from ctrnn_cli.certify import certify_command
from ctrnn_cli.contraction import contraction_command
from ctrnn_cli.evaluate import evaluate_command
from ctrnn_cli.fixed_points import fixed_points_command
from ctrnn_cli.gsc import gsc_command
from ctrnn_cli.lyapunov import lyapunov_command
from ctrnn_cli.plot import plot_command
from ctrnn_cli.report import report_command
from ctrnn_cli.reproduce import reproduce_command
from ctrnn_cli.spectrum import spectrum_command
from ctrnn_cli.train import train_command


class Group(click.Group):
    """A group whose commands turn a user's mistakes into one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except CtrnnError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except BrokenPipeError:
            raise  # click ends quietly where the reader of a pipe is gone
        except OSError as error:
            _stop(f"cannot read or write {error.filename or 'a file'} ({error.strerror or error})")
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            _stop("out of memory. Lower --batch-size, --modules, --units or --resize")


def _stop(reason: str) -> NoReturn:
    click.echo(f"error: {reason}. What was saved before is kept.", err=True)
    sys.exit(2)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ctrnn")
def main() -> None:
    """Recurrent assemblies whose stability is proven: train, evaluate, certify."""


main.add_command(train_command)
main.add_command(evaluate_command)
main.add_command(certify_command)
main.add_command(spectrum_command)
main.add_command(lyapunov_command)
main.add_command(contraction_command)
main.add_command(fixed_points_command)
main.add_command(gsc_command)
main.add_command(plot_command)
main.add_command(report_command)
main.add_command(reproduce_command)
main.add_command(bench_command)
main.add_command(list_command)

if __name__ == "__main__":
    sys.exit(main())
