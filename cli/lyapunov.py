"""`ctrnn lyapunov`: the leading Lyapunov exponents under real inputs, beside the certified bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ctrnn_assembly.certificates.result import finite
from ctrnn_cli.outputs import Outputs, picture_title
from ctrnn_cli.subject import load_subject, subject_options

if TYPE_CHECKING:
    from rich.table import Table

    from ctrnn_assembly.certificates import Certificate


@click.command("lyapunov", short_help="Lyapunov exponents under real inputs.")
@subject_options
@click.option("--k", type=int, default=8, help="number of leading exponents  [default: 8]")
@click.option("--steps", type=int, default=2000, help="steps that count  [default: 2000]")
@click.option("--transient", type=int, help="steps discarded before  [default: a tenth of them]")
@click.option("--every", type=int, default=1, help="steps between orthonormalisations  [default: 1]")
def lyapunov_command(
    source: str,
    outputs: Outputs,
    k: int,
    steps: int,
    transient: int | None,
    every: int,
    **options: Any,
) -> None:
    """The k leading exponents of the solver's step, conditional on the input, by QR.

    Sequences shorter than the run are followed by the next ones. A largest exponent below 0 is an
    average along these runs: nearby trajectories approached each other. The certificate bounds all runs.
    """
    import torch

    from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.lyapunov import lyapunov_figure

    subject = load_subject(source, **options)
    core = subject.core
    if subject.lengths is not None and int(subject.lengths.min()) < subject.u.shape[1]:
        raise ConfigError(
            "sequences of different lengths cannot follow one another here; use --samples 1."
        )
    found = lyapunov_exponents(
        core,
        subject.u,
        k=min(k, subject.terms.n) if k > 0 else k,
        dt=core.dt,
        steps=steps,
        method=core.solver,
        transient=transient,
        every=every,
        generator=torch.Generator().manual_seed(0),
    )
    certificate = subject.certificate()
    rows = [
        {
            "index": index + 1,
            "exponent": finite(value),
            "standard_error": finite(error),
            "factor_of_a_step": finite(math.exp(value * core.dt)),
        }
        for index, (value, error) in enumerate(
            zip(found.exponents.tolist(), found.errors.tolist(), strict=True)
        )
    ]
    bound = certified_bound(certificate)
    result = {
        **subject.about(),
        "counted_steps": found.steps,
        "transient": found.transient,
        "certificate": certificate.as_dict(),
        "certified_bound": bound,
        "rows": rows,
    }
    title = picture_title(result, source)
    arrays = {"times": found.times.numpy(), "trace": found.trace.numpy()}
    outputs.emit(
        result,
        _table(result),
        _notes(result),
        rows=rows,
        arrays=arrays,
        figure=lambda: lyapunov_figure(
            found.times.numpy(),
            found.trace.numpy(),
            found.exponents.numpy(),
            found.errors.numpy(),
            bound=bound,
            title=title,
        ),
    )


def certified_bound(certificate: Certificate) -> float | None:
    """What no exponent of the step may exceed, log(gain) / dt; None if the step is not certified."""
    step = certificate.step
    if (
        step is None
        or not step.certified
        or step.contraction_factor is None
        or step.contraction_factor <= 0
    ):
        return None
    return math.log(step.contraction_factor) / step.dt


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"{result['model']} on {result['task']}: exponents per unit of time"
    table = Table("", "exponent", "standard error", "factor of a step", title=title)
    for column in table.columns:
        column.justify = "right"
    for row in result["rows"]:
        shown = ("exponent", "standard_error", "factor_of_a_step")
        values = ["-" if row[name] is None else f"{row[name]:.6f}" for name in shown]
        table.add_row(str(row["index"]), *values)
    return table


def _notes(result: dict[str, Any]) -> list[str]:
    from ctrnn_cli.show import certificate_rows

    bound = result["certified_bound"]
    known = "no bound: the step is not certified" if bound is None else f"certified: at most {bound:.6f}"
    return [
        f"{result['samples']} runs of {result['counted_steps']} steps of {result['solver']} "
        f"{result['dt']}, after {result['transient']}",
        known,
        *(f"{name}: {value}" for name, value in certificate_rows(result["certificate"])),
    ]
