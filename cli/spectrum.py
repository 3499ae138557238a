"""`ctrnn spectrum`: eigenvalues of the Jacobian and of the step, along driven trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.outputs import Outputs, picture_title
from ctrnn_cli.subject import load_subject, subject_options

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from ctrnn_assembly.diagnostics.spectrum import Spectrum
    from ctrnn_assembly.layers import CTRNN
    from ctrnn_cli.subject import Subject

WARNING = (
    "Eigenvalues alone prove nothing: a system whose Jacobian has all eigenvalues in the left "
    "half-plane at all times can still expand (experiments/counterexamples.py). The certificate proves."
)


@click.command("spectrum", short_help="Eigenvalues along trajectories under real inputs.")
@subject_options
@click.option("--every", type=int, help="steps from one state to the next  [default: a quarter of T]")
@click.option("--at", "chosen", metavar="N,N,...", help="these numbers of steps instead")
@click.option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets")
def spectrum_command(
    source: str,
    outputs: Outputs,
    every: int | None,
    chosen: str | None,
    largest: int | None,
    **options: Any,
) -> None:
    """Spectra of the Jacobian, of its symmetric part in the metric, and of the solver's step.

    For trained weights, those of the initial ones are shown beside them. The analytic Jacobian is
    checked against automatic differentiation at the last state.
    """
    from ctrnn_assembly.figures.spectrum import spectrum_figure

    subject = load_subject(source, **options)
    core = subject.core
    at = steps_to_visit(subject.u.shape[1], every, chosen)
    found = along(core, subject, at, largest, len(subject.u))
    before = _initial(subject, at, largest) if subject.source.kind != "initial" else []
    rows = [*_rows(before, "initial"), *_rows(found, subject.source.kind)]
    certificate = subject.certificate()
    result = {
        **subject.about(),
        "certificate": certificate.as_dict(),
        "rows": rows,
        "blocks": _blocks(core, found[0], subject),
        "autograd_difference": autograd_difference(core, found[0], subject.u[0]),
        "warning": WARNING,
    }
    title = picture_title(result, source)
    outputs.emit(
        result,
        _table(result),
        _notes(result),
        rows=rows,
        arrays=_arrays(found, before),
        figure=lambda: spectrum_figure(found, before, certificate, title=title),
    )


def steps_to_visit(length: int, every: int | None, chosen: str | None) -> list[int]:
    """The numbers of steps after which to look.

    Raises:
        ConfigError: if they are no whole numbers in 0..length.
    """
    from ctrnn_assembly.errors import ConfigError

    if chosen is None:
        every = max(1, length // 4) if every is None else every
        if every < 1:
            raise ConfigError(f"--every must be at least 1; got {every}.")
        return list(range(0, length + 1, every))
    try:
        steps = [int(part) for part in chosen.split(",")]
    except ValueError:
        raise ConfigError(f"--at must be whole numbers like 0,16,64; got {chosen!r}.") from None
    if not all(0 <= step <= length for step in steps):
        raise ConfigError(f"--at must be in 0..{length}, the steps of a sequence; got {chosen!r}.")
    return steps


def along(
    core: CTRNN, subject: Subject, at: list[int], largest: int | None, samples: int
) -> list[Spectrum]:
    """The spectra of each sample, as far as it is long."""
    from ctrnn_assembly.diagnostics.spectrum import spectrum_along

    found = []
    for k in range(samples):
        u = subject.sequence(k)
        steps = [step for step in at if step <= len(u)] or [len(u)]
        found.append(spectrum_along(core, u, at=steps, dt=core.dt, method=core.solver, largest=largest))
    return found


def autograd_difference(core: CTRNN, found: Spectrum, u: Tensor) -> float:
    """The largest difference of an entry of the analytic Jacobian from automatic differentiation."""
    from torch.autograd.functional import jacobian as by_autograd

    from ctrnn_assembly.diagnostics.jacobian import field_jacobian

    terms = core.terms()
    x, last = found.x[-1:], u[-1:]
    exact = by_autograd(lambda z: terms(z, last)[0], x)[:, 0]
    return float((field_jacobian(core, x, last)[0] - exact).abs().max())


def _initial(subject: Subject, at: list[int], largest: int | None) -> list[Spectrum]:
    """The same for the first sample, with the weights before training."""
    core = subject.initial_core()
    return along(core, subject, at, largest, 1)


def _rows(found: list[Spectrum], weights: str) -> list[dict[str, Any]]:
    rows = []
    for sample, s in enumerate(found):
        for k, time in enumerate(s.times.tolist()):
            rows.append(
                {
                    "weights": weights,
                    "sample": sample,
                    "time": time,
                    "abscissa": float(s.abscissa[k]),
                    "local_rate": None if s.local_rates is None else float(s.local_rates[k]),
                    "step_radius": None if s.step_radius is None else float(s.step_radius[k]),
                }
            )
    return rows


def _blocks(core: CTRNN, found: Spectrum, subject: Subject) -> dict[str, Any]:
    """By module at the last state of the first sample, and of the weights alone."""
    from ctrnn_assembly.diagnostics.spectrum import coupling_spectrum, module_spectra, weight_spectra

    modules = module_spectra(core, found.x[-1:], subject.sequence(0)[-1:])
    coupling = coupling_spectrum(core)
    return {
        "module_abscissa": [float(values.real.max()) for values in modules],
        "weight_abscissa": [float(values.real.max()) for values in weight_spectra(core)],
        "weight_radius": [float(values.abs().max()) for values in weight_spectra(core)],
        "coupling_abscissa": float(coupling.real.max()),
        "coupling_radius": float(coupling.abs().max()),
    }


def _arrays(found: list[Spectrum], before: list[Spectrum]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, spectra in (("sample", found), ("initial", before)):
        for k, s in enumerate(spectra):
            arrays[f"{name}{k}_times"] = s.times.numpy()
            arrays[f"{name}{k}_eigenvalues"] = s.eigenvalues.numpy()
            if s.step_eigenvalues is not None:
                arrays[f"{name}{k}_step_eigenvalues"] = s.step_eigenvalues.numpy()
    return arrays


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    title = (
        f"{result['model']} on {result['task']} ({result['split']}), {result['solver']} {result['dt']}"
    )
    table = Table("weights", "sample", "time", "max Re eig J", "local rate", "step radius", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["rows"]:
        rate, radius = row["local_rate"], row["step_radius"]
        table.add_row(
            row["weights"],
            str(row["sample"]),
            f"{row['time']:.4g}",
            f"{row['abscissa']:.5f}",
            "-" if rate is None else f"{rate:.5f}",
            "-" if radius is None else f"{radius:.6f}",
        )
    return table


def _notes(result: dict[str, Any]) -> list[str]:
    from ctrnn_cli.show import certificate_rows

    blocks = result["blocks"]
    worst = max(range(len(blocks["module_abscissa"])), key=lambda k: blocks["module_abscissa"][k])
    return [
        f"largest module abscissa at the last state: {blocks['module_abscissa'][worst]:.5f} "
        f"(module {worst}); of L: {blocks['coupling_abscissa']:.3g}, radius "
        f"{blocks['coupling_radius']:.4g}",
        f"analytic against automatic Jacobian: {result['autograd_difference']:.1e}",
        *(f"{name}: {value}" for name, value in certificate_rows(result["certificate"])),
        WARNING,
    ]
