"""`ctrnn gsc`: the gradient scale coefficient, how gradients grow or fade from the last step back."""

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
    from ctrnn_assembly.diagnostics.effective_depth import Pull
    from ctrnn_cli.subject import Subject


@click.command("gsc", short_help="Gradient scale coefficient over time.")
@subject_options
@click.option("--every", type=int, help="steps between values  [default: a sixteenth of T]")
@click.option("--probes", type=int, help="random probes of the estimate  [default: exact]")
@click.option(
    "--effective-depth", "depth", is_flag=True, help="also how many residual steps count at once"
)
@click.option("--squared", is_flag=True, help="the square, as the paper prints it first")
def gsc_command(
    source: str,
    outputs: Outputs,
    every: int | None,
    probes: int | None,
    depth: bool,
    squared: bool,
    **options: Any,
) -> None:
    """GSC(t, T) = ||dx_T / dx_t||_qm |x_t| / |x_T|, for assemblies and baselines.

    Exact values take as many Jacobian products through the whole sequence as the state has numbers;
    --probes estimates them from so many. Where a state is zero (the first one) there is no value.
    """
    import torch

    from ctrnn_assembly.diagnostics.gsc import gsc_over_time
    from ctrnn_assembly.figures.gsc import gsc_figure

    subject = load_subject(source, **options)
    T = subject.u.shape[1]
    found = gsc_over_time(
        subject.model.core,
        subject.u,
        every=max(1, T // 16) if every is None else every,
        squared=squared,
        probes=probes,
        generator=torch.Generator().manual_seed(0),
    )
    certificate = subject.certificate_or_none()
    errors = found.standard_error
    rows = [
        {
            "step": point,
            "gsc": finite(float(found.value[k])),
            "standard_error": None if errors is None else finite(float(errors[k])),
            "jacobian": finite(float(found.jacobian[k])),
            "jacobian_bound": jacobian_bound(certificate, T - point),
            "state": float(found.size[k]),
        }
        for k, point in enumerate(found.points)
    ]
    result = {
        **subject.about(),
        "squared": squared,
        "probes": probes,
        "products": found.products,
        "effective_depth": effective_depth_in_time(subject) if depth else None,
        "certificate": None if certificate is None else certificate.as_dict(),
        "rows": rows,
    }
    title = picture_title(result, source)
    outputs.emit(
        result,
        _table(result),
        _notes(result),
        rows=rows,
        arrays={"steps": list(found.points), "gsc": found.value.numpy(), "state": found.size.numpy()},
        figure=lambda: gsc_figure(rows, title=title, squared=squared),
    )


def effective_depth_in_time(subject: Subject) -> int:
    """Of the gradient of the right class's logit, back through the steps of the first sample.

    Every step's Jacobian is I + R: the effective depth is the largest number of residual factors R in
    one product that still counts (tolerance 1e-6). For an assembly with a grid solver.

    Raises:
        ConfigError, SolverError: for another model or solver.
    """
    from ctrnn_assembly.diagnostics.effective_depth import effective_depth_of_gradient
    from ctrnn_assembly.diagnostics.jacobian import step_map
    from ctrnn_assembly.solvers import solve

    core, u = subject.core, subject.sequence(0)
    step = step_map(core, dt=core.dt, method=core.solver)
    start = u.new_zeros(1, core.hidden_size)
    x = solve(subject.terms, start, u=u[None], dt=core.dt, method=core.solver).x[0]

    def pull(k: int) -> Pull:
        here = step.jacobian(x[k : k + 1], u[k : k + 1])
        return lambda V: (V, here.transposed(V[None])[0] - V)

    gradient = subject.model.readout.weight[int(subject.y[0])].detach()
    return effective_depth_of_gradient([pull(k) for k in range(len(u))], gradient).depth


def jacobian_bound(certificate: Certificate | None, steps: int) -> float | None:
    """sqrt(cond M) gain^steps, which ||dx_T / dx_t||_qm cannot exceed; None without a certified step."""
    step = None if certificate is None else certificate.step
    if certificate is None or step is None or not step.certified or step.contraction_factor is None:
        return None
    return math.sqrt(certificate.metric.condition_number) * step.contraction_factor**steps


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    name = "GSC^2(t, T)" if result["squared"] else "GSC(t, T)"
    title = f"{result['model']} on {result['task']}: {name}, T = {result['steps']} steps"
    table = Table("t (steps)", name, "standard error", "|dx_T/dx_t|", "certified bound", "|x_t|")
    table.title = title
    for column in table.columns:
        column.justify = "right"
    for row in result["rows"]:
        shown = ("gsc", "standard_error", "jacobian", "jacobian_bound", "state")
        values = ["-" if row[key] is None else f"{row[key]:.4g}" for key in shown]
        table.add_row(str(row["step"]), *values)
    return table


def _notes(result: dict[str, Any]) -> list[str]:
    kind = "exact" if result["probes"] is None else "estimated"
    notes = [f"{kind}, by {result['products']} Jacobian products through the sequence"]
    if result["effective_depth"] is not None:
        notes.append(f"effective depth: {result['effective_depth']} of {result['steps']} steps")
    return notes
