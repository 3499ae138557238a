"""The commands that look at a network under real inputs: numbers of the library, as rows.

    ctrnn spectrum | lyapunov | contraction | fixed-points | gsc   RUN|CONFIG

Each drives the network with samples of its task and shows the certificate beside what it finds, because
a measurement can refute a certificate and never replace it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.options import Command, Decorator, option, together
from ctrnn_cli.output import Column, Outputs, output_options

if TYPE_CHECKING:  # torch takes seconds to import, for which --help need not wait
    from torch import Tensor

    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.diagnostics.spectrum import Spectrum
    from ctrnn_cli.contraction import Distances
    from ctrnn_cli.subject import Subject

WARNING = (
    "Eigenvalues alone prove nothing: a system whose Jacobian has all eigenvalues in the left "
    "half-plane at all times can still expand (experiments/counterexamples.py). The certificate proves."
)
network, drive = (functools.partial(option, section=title) for title in ("network", "input"))


def inspecting(name: str, *own: Decorator) -> Decorator:
    """A command on RUN|CONFIG with its own options; it gets the network as `subject`, and `outputs`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(
            source: str,
            *,
            initial: bool,
            task: str | None,
            split: str,
            samples: int,
            data_dir: str | None,
            dt: float | None,
            solver: str | None,
            **given: Any,
        ) -> None:
            from ctrnn_cli.subject import load_subject

            subject = load_subject(
                source,
                initial=initial,
                task=task,
                split=split,
                samples=samples,
                data_dir=data_dir,
                dt=dt,
                solver=solver,
            )
            function(subject, name=Path(source).name, **given)

        decorators = together(
            click.command(name, cls=Command),
            click.argument("source", metavar="RUN|CONFIG"),
            *own,
            network("--initial", is_flag=True, help="of a run, the weights before training"),
            network("--dt", type=float, help="another time between samples  [default: the run's own]"),
            network("--solver", help="another solver  [default: the run's own]"),
            drive("--task", help="drive with another task  [default: the run's own]"),
            drive(
                "--split",
                type=click.Choice(["train", "val", "test"]),
                default="val",
                help="samples of this split  [default: val]",
            ),
            drive("--samples", type=int, default=4, help="number of input sequences  [default: 4]"),
            drive("--data-dir", help="where the data are, if they have moved"),
            output_options,
        )
        return decorators(command)

    return decorate


def picture_title(subject: Subject, name: str) -> str:
    """What a picture is of."""
    return f"{subject.source.config.model}: {name}"


def about(subject: Subject) -> str:
    """What every table is about."""
    facts = subject.about()
    return f"{facts['model']} on {facts['task']} ({facts['split']}), {facts['solver']} {facts['dt']}"


def certificate_notes(certificate: Certificate) -> list[str]:
    """The certificate in a line or two, under a table."""
    from ctrnn_assembly.certificates.wording import short_rows

    return [f"{name}: {value}" for name, value in short_rows(certificate.as_dict())]


# --- spectrum -------------------------------------------------------------------------------------

SPECTRUM = (
    Column("weights", "weights"),
    Column("sample", "sample", "d"),
    Column("time", "time", ".4g"),
    Column("abscissa", "max Re eig J", ".5f"),
    Column("local_rate", "local rate", ".5f"),
    Column("step_radius", "step radius", ".6f"),
)


@inspecting(
    "spectrum",
    option("--every", type=int, help="steps from one state to the next  [default: a quarter of T]"),
    option("--at", "chosen", metavar="N,N,...", help="these numbers of steps instead"),
    option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets"),
)
def spectrum_command(
    subject: Subject,
    name: str,
    outputs: Outputs,
    every: int | None,
    chosen: str | None,
    largest: int | None,
) -> None:
    """Spectra of the Jacobian, of its symmetric part in the metric, and of the solver's step.

    For trained weights, those of the initial ones are shown beside them, for the first sample.
    """
    from ctrnn_assembly.figures.spectrum import spectrum_figure

    core, kind = subject.core, subject.source.kind
    at = steps_to_visit(subject.u.shape[1], every, chosen)
    found = spectra(core, subject, at, largest, len(subject.u))
    before = [] if kind == "initial" else spectra(subject.initial_core(), subject, at, largest, 1)
    certificate = subject.certificate()
    blocks = block_spectra(core, found[0], subject.sequence(0)[-1:])
    outputs.emit(
        {
            **subject.about(),
            "certificate": certificate.as_dict(),
            "rows": spectrum_rows(before, "initial") + spectrum_rows(found, kind),
            "blocks": blocks,
            "warning": WARNING,
        },
        SPECTRUM,
        title=about(subject),
        notes=[
            f"largest abscissa of a module at the last state: {max(blocks['module_abscissa']):.5f}; "
            f"of L: {blocks['coupling_abscissa']:.3g}, radius {blocks['coupling_radius']:.4g}",
            *certificate_notes(certificate),
            WARNING,
        ],
        arrays=spectrum_arrays(found, "sample") | spectrum_arrays(before, "initial"),
        figure=lambda: spectrum_figure(found, before, certificate, title=picture_title(subject, name)),
    )


def steps_to_visit(length: int, every: int | None, chosen: str | None) -> list[int]:
    """The numbers of steps after which to look.

    Raises:
        ConfigError: if they are no whole numbers in 0..length.
    """
    from ctrnn_assembly.errors import ConfigError

    if chosen is not None and every is not None:
        raise ConfigError("--every and --at exclude each other. Drop one of them.")
    if chosen is None:
        every = max(1, length // 4) if every is None else every
        if not 1 <= every <= length:
            raise ConfigError(f"--every must be in 1..{length}, the steps of a sequence; got {every}.")
        return list(range(0, length + 1, every))
    try:
        steps = [int(part) for part in chosen.split(",")]
    except ValueError:
        raise ConfigError(f"--at must be whole numbers like 0,16,64; got {chosen!r}.") from None
    if not all(0 <= step <= length for step in steps):
        raise ConfigError(f"--at must be in 0..{length}, the steps of a sequence; got {chosen!r}.")
    return steps


def spectra(
    core: Any, subject: Subject, at: Sequence[int], largest: int | None, samples: int
) -> list[Spectrum]:
    """The spectra of each sample, as far as it is long."""
    from ctrnn_assembly.diagnostics.spectrum import spectrum_along

    found = []
    for u in map(subject.sequence, range(samples)):
        steps = [step for step in at if step <= len(u)] or [len(u)]
        found.append(spectrum_along(core, u, at=steps, largest=largest))
    return found


def spectrum_rows(found: list[Spectrum], weights: str) -> list[dict[str, Any]]:
    """One row a state."""
    return [
        {
            "weights": weights,
            "sample": sample,
            "time": time,
            "abscissa": float(s.abscissa[k]),
            "local_rate": None if s.local_rates is None else float(s.local_rates[k]),
            "step_radius": None if s.step_radius is None else float(s.step_radius[k]),
        }
        for sample, s in enumerate(found)
        for k, time in enumerate(s.times.tolist())
    ]


def block_spectra(core: Any, found: Spectrum, u: Tensor) -> dict[str, Any]:
    """By module at the last state of the first sample, and of the weights alone."""
    from ctrnn_assembly.diagnostics.spectrum import coupling_spectrum, module_spectra, weight_spectra

    coupling, weights = coupling_spectrum(core), weight_spectra(core)
    return {
        "module_abscissa": [float(v.real.max()) for v in module_spectra(core, u, found.x[-1:])],
        "weight_abscissa": [float(values.real.max()) for values in weights],
        "weight_radius": [float(values.abs().max()) for values in weights],
        "coupling_abscissa": float(coupling.real.max()),
        "coupling_radius": float(coupling.abs().max()),
    }


def spectrum_arrays(found: list[Spectrum], name: str) -> dict[str, Any]:
    """Times and eigenvalues of every sample."""
    arrays = {}
    for k, s in enumerate(found):
        arrays[f"{name}{k}_times"] = s.times.numpy()
        arrays[f"{name}{k}_eigenvalues"] = s.eigenvalues.numpy()
        if s.step_eigenvalues is not None:
            arrays[f"{name}{k}_step_eigenvalues"] = s.step_eigenvalues.numpy()
    return arrays


# --- lyapunov -------------------------------------------------------------------------------------

LYAPUNOV = (
    Column("index", "", "d"),
    Column("exponent", "exponent", ".6f"),
    Column("standard_error", "standard error", ".6f"),
    Column("half_way", "after half the time", ".6f"),
    Column("factor_of_a_step", "factor of a step", ".6f"),
)


@inspecting(
    "lyapunov",
    option("--k", type=int, help="number of leading exponents  [default: 8, or all of a smaller net]"),
    option("--steps", type=int, default=2000, help="steps that count  [default: 2000]"),
    option("--transient", type=int, help="steps discarded before  [default: a tenth of them]"),
    option("--every", type=int, default=1, help="steps between orthonormalisations  [default: 1]"),
)
def lyapunov_command(
    subject: Subject,
    name: str,
    outputs: Outputs,
    k: int | None,
    steps: int,
    transient: int | None,
    every: int,
) -> None:
    """The k leading exponents of the solver's step, conditional on the input, by QR.

    Sequences shorter than the run are followed by the next ones. A largest exponent below 0 is an
    average along these runs: nearby trajectories approached each other. The certificate bounds all runs.
    --plot and --npz show how the estimates ran over time.
    """
    import torch

    from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.lyapunov import lyapunov_figure

    core = subject.core
    if subject.lengths is not None and int(subject.lengths.min()) < subject.u.shape[1]:
        raise ConfigError(
            "sequences of different lengths cannot follow one another here; use --samples 1."
        )
    if k is not None and not 1 <= k <= subject.terms.n:
        raise ConfigError(f"--k must be in 1..{subject.terms.n}, the units of this network; got {k}.")
    found = lyapunov_exponents(
        core,
        subject.u,
        k=min(8, subject.terms.n) if k is None else k,
        steps=steps,
        transient=transient,
        every=every,
        generator=torch.Generator().manual_seed(0),
    )
    certificate = subject.certificate()
    bound = None if certificate.step is None else certificate.step.exponent_bound
    exponents, errors = found.exponents.tolist(), found.errors.tolist()
    half_way = found.history[(len(found.history) - 1) // 2].tolist()
    outputs.emit(
        {
            **subject.about(),
            "counted_steps": found.steps,
            "transient": found.transient,
            "certificate": certificate.as_dict(),
            "certified_bound": bound,
            "rows": [
                {
                    "index": index + 1,
                    "exponent": exponents[index],
                    "standard_error": errors[index],
                    "half_way": half_way[index],
                    "factor_of_a_step": math.exp(exponents[index] * core.dt),
                }
                for index in range(len(exponents))
            ],
        },
        LYAPUNOV,
        title=f"{about(subject)}: exponents per unit of time",
        notes=[
            f"{len(subject.u)} runs of {found.steps} steps, after {found.transient}",
            "no bound: the step is not certified"
            if bound is None
            else f"certified: at most {bound:.6f}",
            *certificate_notes(certificate),
        ],
        arrays={"times": found.times.numpy(), "trace": found.history.numpy()},
        figure=lambda: lyapunov_figure(
            found.times.numpy(),
            found.history.numpy(),
            found.exponents.numpy(),
            found.errors.numpy(),
            bound=bound,
            title=picture_title(subject, name),
        ),
    )


# --- contraction ----------------------------------------------------------------------------------

CONTRACTION = (
    Column("time", "time", ".4g"),
    Column("metric", "in the metric", ".4g", missing="overflow"),
    Column("euclidean", "Euclidean", ".4g", missing="overflow"),
    Column("certified_step", "certified (step)", ".4g"),
    Column("certified_continuous", "certified (continuous)", ".4g"),
)
TWIN = Column("twin", "twin, in the metric", ".4g", missing="overflow")


@inspecting(
    "contraction",
    option("--pairs", type=int, default=8, help="pairs of initial states a sequence  [default: 8]"),
    option("--spread", type=float, default=1.0, help="their standard deviation  [default: 1]"),
    option(
        "--twin", is_flag=True, help="beside it the same modules with a coupling that has no guarantee"
    ),
)
def contraction_command(
    subject: Subject, name: str, outputs: Outputs, pairs: int, spread: float, twin: bool
) -> None:
    """Start pairs of trajectories apart and drive both with the same input.

    The twin has the same modules and the same strength of coupling, but the modules of a pair excite
    each other in the metric, where the original ones have feedback of opposite signs.
    """
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.contraction import contraction_figure
    from ctrnn_cli.contraction import distances, excited

    if pairs < 1 or not 0 < spread < math.inf:
        raise ConfigError(f"--pairs must be at least 1 and --spread positive; got {pairs}, {spread}.")
    core, terms = subject.core, subject.terms
    certificate = subject.certificate()
    metric = certificate.metric.matrix or subject.metric  # the one that the numbers hold in
    settings: dict[str, Any] = {"dt": core.dt, "method": core.solver, "pairs": pairs, "spread": spread}
    found = distances(terms, metric, subject.u, **settings)
    other = distances(excited(terms, metric), metric, subject.u, **settings) if twin else None
    step = certificate.step
    bound = None if step is None or not step.certified else step.contraction_factor
    rows = contraction_rows(found, other, certificate)
    said = "not certified" if bound is None else f"at most {bound:.6f} certified"
    outputs.emit(
        {
            **subject.about(),
            "pairs": pairs,
            "certificate": certificate.as_dict(),
            "largest_factor": found.largest_factor,
            "certified_factor": bound,
            "growth": growth(found.metric),
            "euclidean_growth": growth(found.euclidean),
            "twin_growth": None if other is None else growth(other.metric),
            "rows": rows,
        },
        CONTRACTION if other is None else (*CONTRACTION, TWIN),
        title=f"{about(subject)}: largest distance of {pairs} pairs",
        notes=[
            f"largest factor of one step: {found.largest_factor:.6f} measured, {said}",
            *certificate_notes(certificate),
        ],
        arrays={
            "times": found.times.numpy(),
            "metric": found.metric.numpy(),
            "euclidean": found.euclidean.numpy(),
            **({} if other is None else {"twin": other.metric.numpy()}),
        },
        figure=lambda: contraction_figure(
            found.times.numpy(),
            found.metric.numpy(),
            found.euclidean.numpy(),
            certificate,
            twin=None if other is None else other.euclidean.numpy(),
            title=picture_title(subject, name),
        ),
    )


def growth(d: Tensor) -> float:
    """The largest distance at the end over that at the beginning."""
    return float((d[:, -1] / d[:, 0]).max())


def contraction_rows(
    found: Distances, other: Distances | None, certificate: Certificate
) -> list[dict[str, Any]]:
    """Largest distances over the pairs, relative to the start, at about twenty times."""
    step = certificate.step
    gain = step.contraction_factor if step is not None and step.certified else None
    rows = []
    for k in range(0, len(found.times), max(1, (len(found.times) - 1) // 20)):
        row = {
            "time": float(found.times[k]),
            "metric": float((found.metric[:, k] / found.metric[:, 0]).max()),
            "euclidean": float((found.euclidean[:, k] / found.euclidean[:, 0]).max()),
            "certified_step": None if gain is None else gain**k,
            "certified_continuous": (
                math.exp(-certificate.rate * float(found.times[k])) if certificate.certified else None
            ),
        }
        if other is not None:
            row["twin"] = float((other.metric[:, k] / other.metric[:, 0]).max())
        rows.append(row)
    return rows


# --- fixed points ---------------------------------------------------------------------------------

FIXED_POINTS = (
    Column("sample", "sample", "d"),
    Column("point", "point", "d"),
    Column("kind", "kind"),
    Column("norm", "|x|", ".5f"),
    Column("residual", "max |tau x'|", ".1e"),
    Column("abscissa", "max Re eig J", ".5f"),
    Column("hits", "starts that ended here", "d"),
)


@inspecting(
    "fixed-points",
    option(
        "--input",
        "held",
        type=click.Choice(["mean", "last", "zero"]),
        default="mean",
        help="the constant input: of each sequence the mean or the last sample, or zero  "
        "[default: mean]",
    ),
    option("--starts", type=int, default=32, help="states to start from  [default: 32]"),
    option("--spread", type=float, default=2.0, help="standard deviation of the starts  [default: 2]"),
    option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets"),
)
def fixed_points_command(
    subject: Subject,
    name: str,
    outputs: Outputs,
    held: str,
    starts: int,
    spread: float,
    largest: int | None,
) -> None:
    """Search by Newton's method from many starts. A contracting network has exactly one, a stable one.

    Finding one fixed point, or none, proves nothing by itself: the certificate beside it does.
    """
    import torch

    from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
    from ctrnn_assembly.figures.fixed_points import fixed_points_figure

    found = [
        find_fixed_points(
            subject.core,
            {"mean": u.mean(0), "last": u[-1], "zero": 0 * u[-1]}[held],
            starts=starts,
            spread=spread,
            largest=largest,
            generator=torch.Generator().manual_seed(0),
        )
        for u in map(subject.sequence, range(1 if held == "zero" else len(subject.u)))
    ]
    certificate = subject.certificate()
    outputs.emit(
        {
            **subject.about(),
            "input": held,
            "starts": starts,
            "certificate": certificate.as_dict(),
            "messages": [points.message for points in found],
            "rows": [
                {
                    "sample": sample,
                    "point": k,
                    "kind": kind,
                    "norm": float(points.points[k].norm()),
                    "residual": float(points.residuals[k]),
                    "abscissa": float(points.eigenvalues[k].real.max()),
                    "hits": int(points.hits[k]),
                }
                for sample, points in enumerate(found)
                for k, kind in enumerate(points.kinds)
            ],
        },
        FIXED_POINTS,
        title=f"{about(subject)}: fixed points under the {held} input, {starts} starts",
        notes=[
            *(f"sample {k}: {points.message}" for k, points in enumerate(found)),
            *certificate_notes(certificate),
        ],
        arrays={f"points{k}": points.points.numpy() for k, points in enumerate(found)}
        | {f"eigenvalues{k}": points.eigenvalues.numpy() for k, points in enumerate(found)},
        figure=lambda: fixed_points_figure(
            found,
            rate=certificate.rate if certificate.certified else None,
            title=picture_title(subject, name),
        ),
    )


# --- gradient scale -------------------------------------------------------------------------------

GSC = (
    Column("step", "t (steps)", "d"),
    Column("gsc", "GSC(t, T)", ".4g"),
    Column("standard_error", "standard error", ".4g"),
    Column("jacobian", "|dx_T/dx_t|", ".4g"),
    Column("jacobian_bound", "certified bound", ".4g"),
    Column("state", "|x_t|", ".4g"),
)


@inspecting(
    "gsc",
    option("--every", type=int, help="steps between values  [default: a sixteenth of T]"),
    option("--probes", type=int, help="random probes of the estimate  [default: exact]"),
    option(
        "--effective-depth", "depth", is_flag=True, help="also how many residual steps count at once"
    ),
    option("--squared", is_flag=True, help="the square, as the paper prints it first"),
)
def gsc_command(
    subject: Subject,
    name: str,
    outputs: Outputs,
    every: int | None,
    probes: int | None,
    depth: bool,
    squared: bool,
) -> None:
    """GSC(t, T) = ||dx_T / dx_t||_qm |x_t| / |x_T|: how gradients grow or fade from the last step back.

    Exact values take as many Jacobian products through the whole sequence as the state has numbers;
    --probes estimates them from so many. Where a state is zero (the first one) there is no value.
    """
    import torch

    from ctrnn_assembly.diagnostics.gradient_scale import gsc_over_time
    from ctrnn_assembly.figures.gsc import gsc_figure

    T = subject.u.shape[1]
    found = gsc_over_time(
        subject.model.core,
        subject.u,
        every=max(1, T // 16) if every is None else every,
        squared=squared,
        probes=probes,
        generator=torch.Generator().manual_seed(0),
    )
    certificate = subject.certificate()
    errors = found.standard_error
    rows = [
        {
            "step": point,
            "gsc": float(found.value[k]),
            "standard_error": None if errors is None else float(errors[k]),
            "jacobian": float(found.jacobian[k]),
            "jacobian_bound": certificate.jacobian_bound(T - point),
            "state": float(found.size[k]),
        }
        for k, point in enumerate(found.points)
    ]
    deep = effective_depth_in_time(subject) if depth else None
    kind = "exact" if probes is None else "estimated"
    outputs.emit(
        {
            **subject.about(),
            "squared": squared,
            "probes": probes,
            "products": found.products,
            "effective_depth": deep,
            "certificate": certificate.as_dict(),
            "rows": rows,
        },
        GSC,
        title=f"{about(subject)}: GSC(t, T){' squared' if squared else ''}, T = {T} steps",
        notes=[
            f"{kind}, by {found.products} Jacobian products through the sequence",
            *([] if deep is None else [f"effective depth: {deep} of {T} steps"]),
        ],
        arrays={"steps": list(found.points), "gsc": found.value.numpy(), "state": found.size.numpy()},
        figure=lambda: gsc_figure(rows, title=picture_title(subject, name), squared=squared),
    )


def effective_depth_in_time(subject: Subject) -> int:
    """Of the gradient of the right class's logit, back through the steps of the first sample.

    Every step's Jacobian is I + R: the effective depth is the largest number of residual factors R in
    one product that still counts (tolerance 1e-6).
    """
    from torch.nn.functional import pad

    from ctrnn_assembly.diagnostics.effective_depth import effective_depth_over_time

    core = subject.model.core
    gradient = subject.model.readout.weight[int(subject.y[0])].detach()
    gradient = pad(gradient, (0, core.state_size - core.hidden_size))  # an LSTM's c is not read
    return effective_depth_over_time(core, subject.sequence(0), gradient).depth
