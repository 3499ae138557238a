"""The commands that look at a network under real inputs: numbers of the library, as rows.

    ctrnn spectrum | lyapunov | contraction | fixed-points | gsc   RUN|CONFIG

Each drives the network with samples of its task and shows the certificate beside what it finds, because
a measurement can refute a certificate and never replace it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.options import Command, Decorator, check_step, option, together
from ctrnn_cli.output import Column, Outputs, output_options

if TYPE_CHECKING:  # torch takes seconds to import, for which --help need not wait
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
network, drive = (functools.partial(option, section=title) for title in ("network", "input"))


@dataclass(frozen=True)
class Driven:
    """A network under inputs of its task.

    Attributes:
        run: the configuration, and which weights. source: as it was named.
        model: with these weights, in float64. certificate: what is proven of it.
        u: inputs, (samples, T, m), float64. y: classes, (samples,). lengths: valid steps, or None.
    """

    run: Run
    source: str
    split: str
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

    def about(self) -> dict[str, Any]:
        """What was looked at, as plain values."""
        looked = {"split": self.split, "samples": len(self.u), "steps": self.u.shape[1]}
        return self.run.about() | looked | {"certificate": self.certificate.as_dict()}

    @property
    def title(self) -> str:
        """What a table is of."""
        config = self.run.config
        step = f", {config.solver} {config.dt}" if hasattr(self.layer, "solver") else ""
        return f"{config.model} on {self.run.task.name} ({self.split}){step}"

    @property
    def picture_title(self) -> str:
        """What a picture is of."""
        return f"{self.run.config.model}: {Path(self.source).name}"

    def certificate_notes(self) -> list[str]:
        """The certificate in a line or two, under a table."""
        from ctrnn_assembly.certificates.wording import short_rows

        return [f"{name}: {value}" for name, value in short_rows(self.certificate.as_dict())]


def inspecting(name: str, *own: Decorator) -> Decorator:
    """A command on RUN|CONFIG with its own options; it gets the network as `net`, and `outputs`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(
            source: str,
            *,
            initial: bool,
            task: str | None,
            split: str,
            samples: int | None,
            data_dir: str | None,
            dt: float | None,
            solver: str | None,
            **given: Any,
        ) -> None:
            from ctrnn_assembly.training.run import Run

            run = Run.open(source, initial=initial, task=task, data_dir=data_dir, dt=dt, solver=solver)
            check_step(run.config, dt=dt, solver=solver)
            u, y, lengths = run.inputs(split, samples)
            model = run.model(double=True)
            net = Driven(run, source, split, model, run.certificate(), u, y, lengths)
            function(net, **given)

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
            drive("--samples", type=int, help="number of input sequences  [default: 4]"),
            drive("--data-dir", help="where the data are, if they have moved"),
            output_options,
        )
        return decorators(command)

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
    option("--every", type=int, help="steps from one state to the next  [default: a quarter of T]"),
    option("--at", "chosen", metavar="N,N,...", help="these numbers of steps instead"),
    option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets"),
)
def spectrum_command(
    net: Driven, outputs: Outputs, every: int | None, chosen: str | None, largest: int | None
) -> None:
    """Spectra of the Jacobian, of its symmetric part in the metric, and of the solver's step.

    For trained weights, those of the initial ones are shown beside them, for the first sample. A map,
    such as an LSTM, has the spectrum of its step only.
    """
    from ctrnn_assembly.diagnostics.spectrum import spectrum_along
    from ctrnn_assembly.figures.spectrum import spectrum_figure
    from ctrnn_assembly.training.run import Run

    at = steps_to_visit(net.u.shape[1], every, chosen)

    def along(layer: Any, u: Tensor) -> Spectrum:
        steps = [step for step in at if step <= len(u)] or [len(u)]
        return spectrum_along(layer, u, at=steps, largest=largest)

    kind, config = net.run.weights.kind, net.run.config
    found, before = [along(net.layer, u) for u in net.sequences], []
    if kind != "initial":
        changes = {"dt": config.dt, "solver": config.solver, "task": config.task}
        start = Run.open(net.source, initial=True, data_dir=config.data_dir, **changes)
        before = [along(start.model(double=True).core, net.sequences[0])]
    blocks = block_spectra(net.layer, net.sequences[0][-1:], found[0].x[-1:])
    outputs.emit(
        {
            **net.about(),
            "rows": spectrum_rows(before, "initial") + spectrum_rows(found, kind),
            "blocks": blocks,
            "warning": WARNING,
        },
        SPECTRUM,
        title=net.title,
        notes=[
            f"largest abscissa of a module at the last state: {max(blocks['module_abscissa']):.5f}",
            *net.certificate_notes(),
            WARNING,
        ],
        arrays=spectrum_arrays(found, "sample") | spectrum_arrays(before, "initial"),
        figure=lambda: spectrum_figure(found, before, net.certificate, title=net.picture_title),
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


def spectrum_rows(found: Sequence[Spectrum], weights: str) -> list[dict[str, Any]]:
    """One row a state."""

    def value(values: Tensor | None, k: int) -> float | None:
        return None if values is None else float(values[k])

    return [
        {
            "weights": weights,
            "sample": sample,
            "time": time,
            "abscissa": value(s.abscissa, k),
            "local_rate": value(s.local_rates, k),
            "step_radius": value(s.step_radius, k),
        }
        for sample, s in enumerate(found)
        for k, time in enumerate(s.times.tolist())
    ]


def block_spectra(layer: Any, u: Tensor, x: Tensor) -> dict[str, list[float] | float]:
    """By module at the last state of the first sample; of the weights alone, if there are `terms()`."""
    from ctrnn_assembly.diagnostics.spectrum import coupling_spectrum, module_spectra, weight_spectra
    from ctrnn_assembly.errors import ConfigError

    found: dict[str, list[float] | float] = {
        "module_abscissa": [float(values.real.max()) for values in module_spectra(layer, u, x)]
    }
    try:
        weights, coupling = weight_spectra(layer), coupling_spectrum(layer)
    except ConfigError:
        return found
    return found | {
        "weight_abscissa": [float(values.real.max()) for values in weights],
        "weight_radius": [float(values.abs().max()) for values in weights],
        "coupling_abscissa": float(coupling.real.max()),
        "coupling_radius": float(coupling.abs().max()),
    }


def spectrum_arrays(found: Sequence[Spectrum], name: str) -> dict[str, Any]:
    """Times and eigenvalues of every sample."""
    arrays = {}
    for k, s in enumerate(found):
        arrays[f"{name}{k}_times"] = s.times.numpy()
        for kind in ("eigenvalues", "step_eigenvalues"):
            if getattr(s, kind) is not None:
                arrays[f"{name}{k}_{kind}"] = getattr(s, kind).numpy()
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
    net: Driven, outputs: Outputs, k: int | None, steps: int, transient: int | None, every: int
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

    if len({len(u) for u in net.sequences}) > 1:
        raise ConfigError(
            "sequences of different lengths cannot follow one another here; use --samples 1."
        )
    n = net.layer.state_size
    if k is not None and not 1 <= k <= n:
        raise ConfigError(f"--k must be in 1..{n}, the numbers in a state; got {k}.")
    found = lyapunov_exponents(
        net.layer,
        torch.stack(net.sequences),
        k=min(8, n) if k is None else k,
        steps=steps,
        transient=transient,
        every=every,
        generator=torch.Generator().manual_seed(0),
    )
    bound = None if net.certificate.step is None else net.certificate.step.exponent_bound
    half_way = found.history[(len(found.history) - 1) // 2]
    outputs.emit(
        {
            **net.about(),
            "counted_steps": found.steps,
            "transient": found.transient,
            "certified_bound": bound,
            "rows": [
                {
                    "index": index + 1,
                    "exponent": exponent,
                    "standard_error": float(found.errors[index]),
                    "half_way": float(half_way[index]),
                    "factor_of_a_step": math.exp(exponent * found.dt),
                }
                for index, exponent in enumerate(found.exponents.tolist())
            ],
        },
        LYAPUNOV,
        title=f"{net.title}: exponents per unit of time",
        notes=[
            f"{len(net.u)} runs of {found.steps} steps, after {found.transient}",
            "no bound: the step is not certified"
            if bound is None
            else f"certified: at most {bound:.6f}",
            *net.certificate_notes(),
        ],
        arrays={"times": found.times.numpy(), "history": found.history.numpy()},
        figure=lambda: lyapunov_figure(
            found.times.numpy(),
            found.history.numpy(),
            found.exponents.numpy(),
            found.errors.numpy(),
            bound=bound,
            title=net.picture_title,
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
    option("--pairs", type=int, default=8, help="pairs at each distance, a sequence  [default: 8]"),
    option("--spread", type=float, default=1.0, help="spread of their initial states  [default: 1]"),
    option("--worst", is_flag=True, help="start each pair where its first step shrinks least"),
    option(
        "--twin", is_flag=True, help="beside it the same modules with a coupling that has no guarantee"
    ),
    option(
        "--theorem6",
        "sixth",
        is_flag=True,
        help="also monitor the corrected Theorem 6: for one module with a smooth phi",
    ),
)
def contraction_command(
    net: Driven, outputs: Outputs, pairs: int, spread: float, worst: bool, twin: bool, sixth: bool
) -> None:
    """Start pairs of trajectories apart, 1e-6 and 1, and drive both with the same input.

    The twin has the same modules and the same strength of coupling, but the modules of a pair excite
    each other in the metric, where the original ones have feedback of opposite signs.

    Theorem 6 has a metric that moves with the slopes; its conditions hold or fail along these runs, and
    prove nothing of others.
    """
    import torch

    from ctrnn_assembly.diagnostics.contraction import excitatory_twin, measure_contraction
    from ctrnn_assembly.diagnostics.theorem6 import monitor_theorem6
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.contraction import contraction_figure

    if pairs < 1 or not 0 <= spread < math.inf:
        raise ConfigError(f"--pairs must be at least 1 and --spread 0 or more; got {pairs}, {spread}.")
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
    monitored = monitor_theorem6(net.layer, net.u) if sixth else None
    step = certificate.step
    bound = None if step is None or not step.certified else step.contraction_factor
    rows = contraction_rows(found, other, certificate)
    said = "not certified" if bound is None else f"at most {bound:.6f} certified"
    outputs.emit(
        {
            **net.about(),
            "pairs": found.pairs,
            "largest_factor": found.factor,
            "certified_factor": bound,
            "rate": found.rate,
            "growth": found.growth,
            "euclidean_peak": found.euclidean_peak,
            "twin_growth": None if other is None else other.growth,
            "theorem6": None
            if monitored is None
            else {"holds": monitored.holds, "c": monitored.c, "rate": monitored.rate},
            "rows": rows,
        },
        CONTRACTION if other is None else (*CONTRACTION, TWIN),
        title=f"{net.title}: largest distance of {found.pairs} pairs, relative to the start",
        notes=[
            f"largest factor of one step: {found.factor:.6f} measured, {said}",
            f"Euclidean distances grew {found.euclidean_peak:.4g}-fold at most before they shrank",
            *(
                []
                if monitored is None
                else [
                    f"Theorem 6 {'holds' if monitored.holds else 'does not hold'} along these runs: "
                    f"c {monitored.c:.4g}, rate {monitored.rate:.4g}; {monitored.note}"
                ]
            ),
            *net.certificate_notes(),
        ],
        arrays={
            "times": found.times.numpy(),
            "metric": found.distances.numpy(),
            "euclidean": found.euclidean.numpy(),
            **({} if other is None else {"twin": other.distances.numpy()}),
        },
        figure=lambda: contraction_figure(
            found.times.numpy(),
            found.distances.numpy(),
            found.euclidean.numpy(),
            certificate,
            twin=None if other is None else other.euclidean.numpy(),
            title=net.picture_title,
        ),
    )


def contraction_rows(
    found: Measurement, other: Measurement | None, certificate: Certificate
) -> list[dict[str, Any]]:
    """Largest distances over the pairs, relative to the start, at about twenty times."""
    step = certificate.step
    factor = step.contraction_factor if step is not None and step.certified else None

    def largest(distances: Tensor, k: int) -> float:
        return float((distances[:, k] / distances[:, 0]).max())

    rows = []
    for k in range(0, found.steps + 1, max(1, found.steps // 20)):
        time = k * found.dt
        row = {
            "time": time,
            "metric": largest(found.distances, k),
            "euclidean": largest(found.euclidean, k),
            "certified_step": None if factor is None else factor**k,
            "certified_continuous": (
                math.exp(-certificate.rate * time) if certificate.certified else None
            ),
        }
        rows.append(row if other is None else row | {"twin": largest(other.distances, k)})
    return rows


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
        help="the constant input: of each sequence the mean or the last sample, or zero  "
        "[default: mean]",
    ),
    option("--starts", type=int, default=32, help="states to start from  [default: 32]"),
    option("--spread", type=float, default=2.0, help="standard deviation of the starts  [default: 2]"),
    option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets"),
)
def fixed_points_command(
    net: Driven, outputs: Outputs, held: str, starts: int, spread: float, largest: int | None
) -> None:
    """Search by Newton's method from many starts. A contracting network has exactly one, a stable one.

    Finding one fixed point, or none, proves nothing by itself: the certificate beside it does.
    """
    import torch

    from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
    from ctrnn_assembly.figures.fixed_points import fixed_points_figure

    certificate = net.certificate
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
    outputs.emit(
        {
            **net.about(),
            "input": held,
            "starts": starts,
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
        title=f"{net.title}: fixed points under the {held} input, {starts} starts",
        notes=[
            *(f"sample {k}: {points.message}" for k, points in enumerate(found)),
            *net.certificate_notes(),
        ],
        arrays={f"points{k}": points.points.numpy() for k, points in enumerate(found)}
        | {f"eigenvalues{k}": points.eigenvalues.numpy() for k, points in enumerate(found)},
        figure=lambda: fixed_points_figure(
            found, rate=certificate.rate if certificate.certified else None, title=net.picture_title
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
    net: Driven, outputs: Outputs, every: int | None, probes: int | None, depth: bool, squared: bool
) -> None:
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
    from ctrnn_assembly.figures.gsc import gsc_figure

    T = net.u.shape[1]
    found = gsc_over_time(
        net.layer,
        net.u,
        every=max(1, T // 16) if every is None else every,
        squared=squared,
        probes=probes,
        generator=torch.Generator().manual_seed(0),
    )
    errors = found.standard_error
    rows = [
        {
            "step": point,
            "gsc": float(found.value[k]),
            "standard_error": None if errors is None else float(errors[k]),
            "jacobian": float(found.jacobian[k]),
            "jacobian_bound": net.certificate.jacobian_bound(T - point),
            "state": float(found.size[k]),
        }
        for k, point in enumerate(found.points)
    ]
    deep = None
    if depth:
        gradient = net.model.readout.weight[int(net.y[0])].detach()
        gradient = pad(gradient, (0, net.layer.state_size - len(gradient)))  # an LSTM's c is not read
        deep = effective_depth_over_time(net.layer, net.sequences[0], gradient).depth
    kind = "exact" if probes is None else "estimated"
    outputs.emit(
        {
            **net.about(),
            "squared": squared,
            "probes": probes,
            "products": found.products,
            "effective_depth": deep,
            "rows": rows,
        },
        GSC,
        title=f"{net.title}: GSC(t, T){' squared' if squared else ''}, T = {T} steps",
        notes=[
            f"{kind}, by {found.products} Jacobian products through the sequence",
            *([] if deep is None else [f"effective depth: {deep} of {len(net.sequences[0])} steps"]),
        ],
        arrays={"steps": list(found.points), "gsc": found.value.numpy(), "state": found.size.numpy()},
        figure=lambda: gsc_figure(rows, title=net.picture_title, squared=squared),
    )
