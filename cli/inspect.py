"""The commands that look at a network under real inputs: numbers of the library, as rows.

    ctrnn spectrum | lyapunov | contraction | fixed-points | gsc   RUN|CONFIG

Each drives the network with samples of its task and shows the certificate beside what it finds, because
a measurement can refute a certificate and never replace it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.options import Command, Decorator, check_step, integers, option, together
from ctrnn_cli.output import Column, Outputs, output_options, rows_of

if TYPE_CHECKING:  # torch takes seconds to import, for which --help need not wait
    from matplotlib.figure import Figure
    from torch import Tensor

    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.diagnostics.contraction import Measurement
    from ctrnn_assembly.diagnostics.spectrum import Spectrum
    from ctrnn_assembly.layers import SequenceClassifier
    from ctrnn_assembly.training.run import Run

WARNING = (
    "Eigenvalues alone prove nothing: a system whose Jacobian has all eigenvalues in the left "
    "half-plane at all times can still expand (experiments/counterexamples.py). The certificate proves."
)


@dataclass(frozen=True)
class Driven:
    """A network under inputs of its task.

    Attributes:
        run: the configuration, and which weights.
        model: with these weights, in float64. certificate: what is proven of it.
        u: inputs, (samples, T, m), float64. y: classes, (samples,). lengths: valid steps, or None.
    """

    run: Run
    model: SequenceClassifier
    certificate: Certificate
    u: Tensor
    y: Tensor
    lengths: Tensor | None

    @property
    def layer(self) -> Any:
        """The recurrent layer, with its own step."""
        return self.model.core

    @property
    def sequences(self) -> list[Tensor]:
        """The inputs of each sample without padding, (T, m)."""
        lengths = [self.u.shape[1]] * len(self.u) if self.lengths is None else self.lengths.tolist()
        return [u[:length] for u, length in zip(self.u, lengths, strict=True)]


@dataclass(frozen=True)
class Findings:
    """What a command found.

    Attributes:
        columns: of the table. values: its rows, a value for each column.
        arrays: for --npz. figure: draws, given a title. what: added to the title of the table.
        notes: sentences under it. facts: more values for --json.
    """

    columns: Sequence[Column]
    values: Iterable[Sequence[Any]]
    arrays: Mapping[str, Any]
    figure: Callable[..., Figure]
    what: str = ""
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def inspecting(name: str, *own: Decorator) -> Decorator:
    """A command on RUN|CONFIG with its own options: a function from a `Driven` network to `Findings`."""

    def decorate(function: Callable[..., Findings]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(
            source: str, *, outputs: Outputs, split: str, samples: int | None, initial: bool,
            dt: float | None, solver: str | None, task: str | None, data_dir: str | None, **given: Any,
        ) -> None:  # fmt: skip
            from ctrnn_assembly.certificates.wording import short_rows
            from ctrnn_assembly.training.run import Run

            run = Run.open(source, initial=initial, task=task, data_dir=data_dir, dt=dt, solver=solver)
            check_step(run.config, dt=dt, solver=solver)
            u, y, lengths = run.inputs(split, samples)
            net = Driven(run, run.model(double=True), run.certificate(), u, y, lengths)
            found = function(net, **given)
            config, proven = run.config, net.certificate.as_dict()
            looked = {"split": split, "samples": len(u), "steps": u.shape[1], "certificate": proven}
            step = f", {config.solver} {config.dt}" if hasattr(net.layer, "solver") else ""
            rows = rows_of(found.columns, found.values)
            outputs.emit(
                {**run.about(), **looked, **found.facts, "rows": rows},
                found.columns,
                title=f"{config.model} on {run.task.name} ({split}){step}{found.what}",
                notes=[*found.notes, *(f"{key}: {value}" for key, value in short_rows(proven))],
                arrays=found.arrays,
                figure=lambda: found.figure(title=f"{config.model}: {Path(source).name}"),
            )

        drive = functools.partial(option, section="input")
        return together(
            click.command(name, cls=Command),
            click.argument("source", metavar="RUN|CONFIG"),
            *own,
            option("--initial", is_flag=True, help="of a run, the weights before training"),
            option("--dt", type=float, help="another time between samples than the run's own"),
            option("--solver", help="another solver than the run's own"),
            drive("--task", help="drive with another task than the run's own"),
            drive("--split", type=click.Choice(["train", "val", "test"]), default="val"),
            drive("--samples", type=int, help="number of input sequences  [default: 4]"),
            drive("--data-dir", help="where the data are, if they have moved"),
            output_options,
        )(command)

    return decorate


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
    option("--every", type=click.IntRange(min=1), help="steps from one state to the next"),
    option("--at", callback=integers, metavar="N,N,...", help="these steps  [default: five]"),
    option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets"),
)
def spectrum_command(
    net: Driven, every: int | None, at: tuple[int, ...] | None, largest: int | None
) -> Findings:
    """Spectra of the Jacobian, of its symmetric part in the metric, and of the solver's step.

    For trained weights, those of the initial ones are shown beside them, for the first sample. A map,
    such as an LSTM, has the spectrum of its step only.
    """
    from ctrnn_assembly.diagnostics.spectrum import spectrum_along
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.spectrum import spectrum_figure

    T, kind = net.u.shape[1], net.run.weights.kind
    if at is not None and every is not None:
        raise ConfigError("--every and --at exclude each other. Drop one of them.")
    at = tuple(range(0, T + 1, every or max(1, T // 4))) if at is None else at
    if not all(0 <= step <= T for step in at):
        raise ConfigError(f"--at must be in 0..{T}, the steps of a sequence; got {at}.")

    def along(layer: Any, u: Tensor) -> Spectrum:
        steps = [step for step in at if step <= len(u)] or [len(u)]
        return spectrum_along(layer, u, at=steps, largest=largest)

    found = {kind: [along(net.layer, u) for u in net.sequences]}
    if kind != "initial":
        start = net.run.before_training().model(double=True).core
        found = {"initial": [along(start, net.sequences[0])], **found}
    last = found[kind][0].x[-1:]
    every_one = [(weights, k, s) for weights, spectra in found.items() for k, s in enumerate(spectra)]
    return Findings(
        SPECTRUM,
        [
            (weights, k, *values)
            for weights, k, s in every_one
            for values in zip(
                *(listed(v, len(s.times)) for v in (s.times, s.abscissa, s.local_rates, s.step_radius)),
                strict=True,
            )
        ],
        {
            f"{'initial' if weights == 'initial' else 'sample'}{k}_{key}": getattr(s, key)
            for weights, k, s in every_one
            for key in ("times", "eigenvalues", "step_eigenvalues")
            if getattr(s, key) is not None
        },
        functools.partial(
            spectrum_figure, found[kind], [] if kind == "initial" else found["initial"], net.certificate
        ),
        notes=[WARNING],
        facts={"blocks": block_spectra(net.layer, net.sequences[0][-1:], last), "warning": WARNING},
    )


def listed(values: Tensor | None, n: int) -> list[Any]:
    """The n values, or None for each."""
    return [None] * n if values is None else values.tolist()


def block_spectra(layer: Any, u: Tensor, x: Tensor) -> dict[str, Any]:
    """By module at the last state of the first sample; of the weights alone, if there are `terms()`."""
    from ctrnn_assembly.diagnostics.spectrum import module_spectra, weight_spectra
    from ctrnn_assembly.errors import ConfigError

    found = {"module_abscissa": [float(v.real.max()) for v in module_spectra(layer, u, x)]}
    try:
        weights, coupling = weight_spectra(layer)
    except ConfigError:
        return found
    return found | {
        "weight_abscissa": [float(v.real.max()) for v in weights],
        "weight_radius": [float(v.abs().max()) for v in weights],
        "coupling_abscissa": float(coupling.real.max()),
        "coupling_radius": float(coupling.abs().max()),
    }


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
    option("--steps", default=2000, help="steps that count"),
    option("--transient", type=int, help="steps discarded before  [default: a tenth of them]"),
    option("--every", default=1, help="steps between orthonormalisations"),
)
def lyapunov_command(
    net: Driven, k: int | None, steps: int, transient: int | None, every: int
) -> Findings:
    """The k leading exponents of the solver's step, conditional on the input, by QR.

    Sequences shorter than the run are followed by the next ones. A largest exponent below 0 is an
    average along these runs: nearby trajectories approached each other. The certificate bounds all runs.
    --plot and --npz show how the estimates ran over time.
    """
    import torch

    from ctrnn_assembly.certificates.wording import up
    from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.diagnostics import lyapunov_figure

    if len({len(u) for u in net.sequences}) > 1:
        raise ConfigError("sequences of different lengths cannot follow one another; use --samples 1.")
    found = lyapunov_exponents(
        net.layer,
        torch.stack(net.sequences),
        k=min(8, net.layer.state_size) if k is None else k,
        steps=steps,
        transient=transient,
        every=every,
        generator=torch.Generator().manual_seed(0),
    )
    bound = None if net.certificate.step is None else net.certificate.step.exponent_bound
    half_way = found.history[(len(found.history) - 1) // 2].tolist()
    exponents = found.exponents.tolist()
    factors = [math.exp(exponent * found.dt) for exponent in exponents]
    drawn = found.times, found.history, found.exponents, found.errors
    columns = exponents, found.errors.tolist(), half_way, factors
    return Findings(
        LYAPUNOV,
        [(k, *row) for k, row in enumerate(zip(*columns, strict=True), 1)],
        {"times": found.times, "history": found.history},
        functools.partial(lyapunov_figure, *(values.numpy() for values in drawn), bound=bound),
        what=": exponents per unit of time",
        notes=[
            f"{len(net.u)} runs of {found.steps} steps, after {found.transient}",
            "no certified bound" if bound is None else f"certified: at most {up(bound, 6)}",
        ],
        facts={"counted_steps": found.steps, "transient": found.transient, "certified_bound": bound},
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
    option("--pairs", default=8, help="pairs at each distance and sequence"),
    option("--spread", default=1.0, help="standard deviation of their initial states"),
    option("--worst", is_flag=True, help="start each pair where its first step shrinks least"),
    option(
        "--twin", is_flag=True, help="beside it the same modules with a coupling that has no guarantee"
    ),
    option(
        "--theorem6", is_flag=True, help="monitor the corrected Theorem 6: one module with a smooth phi"
    ),
)
def contraction_command(
    net: Driven, pairs: int, spread: float, worst: bool, twin: bool, theorem6: bool
) -> Findings:
    """Start pairs of trajectories apart, by 1e-6 and by 1, and drive both with the same input.

    The twin has the same modules and the same strength of coupling, but the modules of a pair excite
    each other in the metric, where the original ones have feedback of opposite signs.

    Theorem 6 has a metric that moves with the slopes; its conditions hold or fail along these runs, and
    prove nothing of others.
    """
    import torch

    from ctrnn_assembly.certificates.wording import factor
    from ctrnn_assembly.diagnostics.contraction import excitatory_twin, measure_contraction
    from ctrnn_assembly.diagnostics.theorem6 import monitor_theorem6
    from ctrnn_assembly.figures.diagnostics import contraction_figure

    certificate = net.certificate
    metric = certificate.metric.matrix  # the one that the numbers hold in
    settings: dict[str, Any] = {"metric": metric, "pairs": pairs, "spread": spread}
    settings["directions"] = "worst" if worst else "random"

    def measured(layer: Any, **step: Any) -> Measurement:
        seeded = torch.Generator().manual_seed(0)
        return measure_contraction(layer, net.u, generator=seeded, **settings, **step)

    found, other = measured(net.layer), None
    if twin:
        excited = excitatory_twin(net.layer, metric)
        settings["metric"] = metric or net.layer.metric()
        other = measured(excited, dt=found.dt, solver=found.solver)
    step = certificate.step
    bound = None if step is None or not step.certified else step.contraction_factor
    said = "not certified" if bound is None else f"at most {factor(bound)} certified"
    notes = [
        f"largest factor of one step: {found.factor:.6f} measured, {said}",
        f"Euclidean distances grew {found.euclidean_peak:.4g}-fold at most",
    ]
    facts: dict[str, Any] = {
        "pairs": found.pairs,
        "largest_factor": found.factor,
        "certified_factor": bound,
        "rate": found.rate,
        "growth": found.growth,
        "euclidean_peak": found.euclidean_peak,
        "twin_growth": None if other is None else other.growth,
    }
    if theorem6:
        seen = monitor_theorem6(net.layer, net.u)
        holds = "holds" if seen.holds else "does not hold"
        notes.append(
            f"Theorem 6 {holds} along these runs: c {seen.c:.4g}, rate {seen.rate:.4g}; {seen.note}"
        )
        facts["theorem6"] = {"holds": seen.holds, "c": seen.c, "rate": seen.rate}
    at = range(0, found.steps + 1, max(1, found.steps // 20))
    times = [k * found.dt for k in at]
    rate = certificate.rate if certificate.certified else None
    values = [
        times,
        largest(found.distances, at),
        largest(found.euclidean, at),
        [None if bound is None else bound**k for k in at],
        [None if rate is None else math.exp(-rate * time) for time in times],
        *([] if other is None else [largest(other.distances, at)]),
    ]
    return Findings(
        CONTRACTION if other is None else (*CONTRACTION, TWIN),
        zip(*values, strict=True),
        {
            "times": found.times,
            "metric": found.distances,
            "euclidean": found.euclidean,
            **({} if other is None else {"twin": other.distances}),
        },
        functools.partial(
            contraction_figure,
            found.times.numpy(),
            found.distances.numpy(),
            found.euclidean.numpy(),
            certificate,
            twin=None if other is None else other.euclidean.numpy(),
        ),
        what=f": largest distance of {found.pairs} pairs, relative to the start",
        notes=notes,
        facts=facts,
    )


def largest(distances: Tensor, at: Sequence[int]) -> list[float]:
    """The largest distance of a pair relative to its start, after some numbers of steps."""
    return (distances[:, at] / distances[:, :1]).amax(0).tolist()


# --- fixed points ---------------------------------------------------------------------------------

FIXED_POINTS = (
    Column("sample", "sample", "d"),
    Column("point", "point", "d"),
    Column("kind", "kind"),
    Column("norm", "|x|", ".5f"),
    Column("residual", "residual", ".1e"),
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
        help="the constant input: of each sequence the mean or the last sample, or zero",
    ),
    option("--starts", default=32, help="states to start from"),
    option("--spread", default=2.0, help="standard deviation of the starts"),
    option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets"),
)
def fixed_points_command(
    net: Driven, held: str, starts: int, spread: float, largest: int | None
) -> Findings:
    """Search by Newton's method from many starts. A contracting network has exactly one, a stable one.

    Finding one fixed point, or none, proves nothing by itself: the certificate beside it does.
    """
    import torch

    from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
    from ctrnn_assembly.figures.diagnostics import fixed_points_figure

    found = [
        find_fixed_points(
            net.layer,
            {"mean": u.mean(0), "last": u[-1], "zero": 0 * u[-1]}[held],
            starts=starts,
            spread=spread,
            largest=largest,
            generator=torch.Generator().manual_seed(0),
        )
        for u in net.sequences[: 1 if held == "zero" else None]
    ]
    messages = [points.message for points in found]
    rate = net.certificate.rate if net.certificate.certified else None
    return Findings(
        FIXED_POINTS,
        [
            (
                sample,
                k,
                kind,
                float(p.points[k].norm()),
                float(p.residuals[k]),
                float(p.eigenvalues[k].real.max()),
                int(p.hits[k]),
            )
            for sample, p in enumerate(found)
            for k, kind in enumerate(p.kinds)
        ],
        {f"points{k}": points.points for k, points in enumerate(found)}
        | {f"eigenvalues{k}": points.eigenvalues for k, points in enumerate(found)},
        functools.partial(fixed_points_figure, found, rate=rate),
        what=f": fixed points under the {held} input, {starts} starts",
        notes=[f"sample {k}: {message}" for k, message in enumerate(messages)],
        facts={"input": held, "starts": starts, "messages": messages},
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
    option("--effective-depth", is_flag=True, help="also how many residual steps count at once"),
    option("--squared", is_flag=True, help="the square, as the paper prints it first"),
)
def gsc_command(
    net: Driven, every: int | None, probes: int | None, effective_depth: bool, squared: bool
) -> Findings:
    """GSC(t, T) = ||dx_T / dx_t||_qm |x_t| / |x_T|: how gradients grow or fade from the last step back.

    Exact values take as many Jacobian products through the whole sequence as the state has numbers;
    --probes estimates them from so many. Where a state is zero (the first one) there is no value.

    The effective depth is that of the gradient of the right class's logit through the first sample:
    every step's Jacobian is I + R, and it is the largest number of factors R in one product that still
    counts (tolerance 1e-6).
    """
    import torch
    from torch.nn.functional import pad

    from ctrnn_assembly.diagnostics.effective_depth import effective_depth_over_time
    from ctrnn_assembly.diagnostics.gradient_scale import gsc_over_time
    from ctrnn_assembly.figures.diagnostics import gsc_figure

    T = net.u.shape[1]
    found = gsc_over_time(
        net.layer,
        net.u,
        every=max(1, T // 16) if every is None else every,
        squared=squared,
        probes=probes,
        generator=torch.Generator().manual_seed(0),
    )
    bounds = [net.certificate.jacobian_bound(T - point) for point in found.points]
    errors, norms = listed(found.standard_error, len(bounds)), found.jacobian.tolist()
    values = found.points, found.value.tolist(), errors, norms, bounds, found.size.tolist()
    rows, depth = rows_of(GSC, zip(*values, strict=True)), None
    exact = "exact" if probes is None else "estimated"
    notes = [f"{exact}, by {found.products} Jacobian products through the sequence"]
    if effective_depth:
        gradient = net.model.readout.weight[int(net.y[0])].detach()
        gradient = pad(gradient, (0, net.layer.state_size - len(gradient)))  # an LSTM's c is not read
        depth = effective_depth_over_time(net.layer, net.sequences[0], gradient).depth
        notes.append(f"effective depth: {depth} of {len(net.sequences[0])} steps")
    return Findings(
        GSC,
        [list(row.values()) for row in rows],
        {"steps": list(found.points), "gsc": found.value, "state": found.size},
        functools.partial(gsc_figure, rows, squared=squared),
        what=f": GSC(t, T){' squared' if squared else ''}, T = {T} steps",
        notes=notes,
        facts={
            "squared": squared,
            "probes": probes,
            "products": found.products,
            "effective_depth": depth,
        },
    )
