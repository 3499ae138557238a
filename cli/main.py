"""The command line `ctrnn`. A command's module is imported when the command is used, not before."""

import os
import sys
from importlib import import_module
from typing import Any

import click

from ctrnn_assembly import __version__
from ctrnn_assembly.errors import CtrnnError, unknown

# The module with the function NAME_command, and one line on it.
COMMANDS = {
    "train": ("train", "Train a model on a task; with no options, on digits."),
    "evaluate": ("train", "Test the weights of a run."),
    "predict": ("files", "Classes or values of new series, by a run of your own data."),
    "certify": ("certify", "Prove that a run, or a configuration, contracts."),
    "check": ("certify", "Check a proof, or replay a witness, that certify has written."),
    "spectrum": ("inspect", "Eigenvalues along trajectories under real inputs."),
    "lyapunov": ("inspect", "Lyapunov exponents under real inputs."),
    "contraction": ("inspect", "Distances between trajectories, and what is certified."),
    "fixed-points": ("inspect", "Fixed points under constant inputs, and their spectra."),
    "gsc": ("inspect", "Gradient scale coefficient over time."),
    "plot": ("files", "Draw training curves, weights, coupling, certificate."),
    "report": ("files", "One HTML page about a run, which opens without a network."),
    "compare": ("compare", "Runs side by side: settings, measures, certificates, time."),
    "sweep": ("compare", "Search settings by many runs: grid, random or Bayesian."),
    "reproduce": ("compare", "Run the papers' experiments; print published and ours."),
    "bench": ("compare", "Time our solvers against others, on this machine."),
    "export": ("files", "Write a run as an ONNX file, or as a program of torch.export."),
    "list": ("train", "Tasks, models, theorems, solvers: all that has a name."),
}
KEPT = "What was saved before is kept."


class Commands(click.Group):
    """Commands by name, which turn a user's mistakes into one sentence and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run in this process, which draws to files only and whose stdout and stderr are open."""
        os.environ["MPLBACKEND"] = "agg"  # a notebook leaves one of its own, which fails here
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # the shell completes
                return None
            raise unknown("command", cmd_name, COMMANDS)
        module = import_module(f"ctrnn_cli.{COMMANDS[cmd_name][0]}")
        return getattr(module, f"{cmd_name.replace('-', '_')}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table above: click would import every command for its short help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except CtrnnError as error:
            reason = str(error)
        except KeyboardInterrupt:
            click.echo(f"interrupted. {KEPT}", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            raise  # click ends quietly where the reader of a pipe is gone
        except OSError as error:
            what = f"{error.filename or 'a file'} ({error.strerror or error})"
            reason = f"cannot read or write {what}. {KEPT}"
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            reason = f"out of memory. Lower --batch-size, --modules, --units or --resize. {KEPT}"
        click.echo(f"error: {reason}", err=True)
        ctx.exit(2)


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 105, "show_default": True}


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(__version__, prog_name="ctrnn")
def main() -> None:
    """Recurrent assemblies whose stability is proven: train, evaluate, certify."""


if __name__ == "__main__":
    sys.exit(main())
