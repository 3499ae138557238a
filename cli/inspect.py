"""The commands that look at a network under real inputs: numbers of the library, as rows.

Each drives the network with samples of its task, or those of --data, or a net of the user's own with
random ones, and shows the certificate beside what it finds, because a measurement can refute a
certificate and never replace it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from click import option

import ctrnn_assembly
from ctrnn_assembly.errors import ConfigError
from ctrnn_cli import shared
from ctrnn_cli.shared import Column, Columns, Decorator, drawn

Results = dict[str, Any]
WARNING = (
    "Eigenvalues alone prove nothing: a system whose Jacobian has all eigenvalues in the left "
    "half-plane at all times can still expand (docs/explanations/counterexamples.md). The "
    "certificate proves."
)
TWIN = "beside it the same modules with a coupling that has no guarantee"
CHANGES = ("initial", "task", "data_dir", "dt", "substeps", "solver", "one_field", "split", "samples")
MODULE = "instead of a run: your net, or what makes it; or FILE.safetensors of a tanh nn.RNN, GRU, LSTM"
DATA = "drive with the series of this file; by default the task, or random numbers"
INPUT = "the constant input: of each sequence the mean or the last sample, or zero"


class Driven:
    """A network under inputs u, (samples, T, m) float64, and what a command finds of it.

    `run` is None for a net of --module, `step` dt and solver, None for the net's own, `rate` the
    certified one of continuous time, or None; `sequences` are the inputs without padding, (T, m).
    """

    run: Any = None
    kind: str  # of the weights, as `Weights.kind`, or "given"

    def __init__(
        self, source: str | None, module: str | None, data: Path | None, changes: Any, outputs: Any
    ) -> None:
        if (source is None) == (module is None):
            raise ConfigError("name a run, a file or a recipe, or a net of your own by --module.")
        of_run = ("task", "split", "data_dir", *(("initial", "substeps", "one_field") if module else ()))
        if (module or data) and (wrong := [name for name in of_run if changes[name]]):
            flag = f"--{wrong[0].replace('_', '-')}"
            raise ConfigError(f"{flag} is of a run and its task. Drop it, or --module or --data.")
        split, samples = changes.pop("split"), changes.pop("samples")
        self.name, self.outputs, self.module = Path(source or module or "").name, outputs, module
        self.step = {name: changes[name] for name in ("dt", "solver")}
        if module is None:
            self.run = ctrnn_assembly.Run.open(str(source), **changes)
            self.behaviour = ctrnn_assembly.behaviour(self.run.build(double=True).core)
            self.certificate = self.run.certificate
            self.kind, self.about = self.run.weights.kind, self.run.about()
        else:
            self._open_module(module)
        self.rate = self.certificate.rate if self.certificate.certified else None
        self._drive(data, split or "val", samples)

    def _open_module(self, named: str) -> None:
        from ctrnn_cli.nets import load_net

        net = load_net(named)
        self.behaviour = ctrnn_assembly.behaviour(getattr(net, "core", net))
        dt, solver = self.behaviour.resolve(**self.step)
        is_behaviour = isinstance(net, ctrnn_assembly.Behaviour)
        given = self.behaviour.own_map() if is_behaviour else net
        self.certificate = ctrnn_assembly.certify(given, dt=dt, solver=self.step["solver"])
        self.kind, weights = "given", {"kind": "given", "file": named, "sha256": None}
        about = {"model": type(net).__name__, "units": self.behaviour.size, "weights": weights}
        self.about = about | {"task": None, "solver": solver, "dt": dt}

    def _drive(self, data: Path | None, split: str, samples: int | None) -> None:
        """Take the inputs of --data, of the run's task, or random ones."""
        from ctrnn_cli.nets import load_inputs, try_out

        if self.run is None or data is not None:
            self.split, self.inputs = "random" if data is None else "data", str(data or "random inputs")
            self.u, lengths = load_inputs(data, self.behaviour.input_size, samples)
        else:
            self.split, self.inputs = split, f"{self.run.task.name} ({split})"
            self.u, _, lengths = self.run.inputs(split, samples)
        known = [self.u.shape[1]] * len(self.u) if lengths is None else lengths.tolist()
        self.sequences = [u[:length] for u, length in zip(self.u, known, strict=True)]
        if self.module is not None:
            try_out(self.module, self.behaviour, self.u[:1, 0])

    @property
    def generator(self) -> Any:
        import torch

        return torch.Generator().manual_seed(0)

    def show(
        self, found: Results, *blocks: Columns, what: str, notes: list[str], figure: Any, **facts: Any
    ) -> None:
        """Show rows, the sentences `notes` under them, and the certificate.

        Args:
            found: results by the prefix of their names: numbers go to --json, tensors to --npz.
            blocks: the same columns each, with values; one block stands under the other.
            what: added to the title of the table. figure: draws, given a title.
            facts: more values for --json.
        """
        from ctrnn_assembly.certificates.result import plain

        about, proven = self.about, self.certificate.as_dict()
        if (cascade := self.certificate.cascade) is not None:
            those = f"of the states of all {len(cascade.layers)} layers together"
            notes = [*notes, f"{those}; the slowest, by its proof, is layer {cascade.slowest}"]
        looked = {"split": self.split, "samples": len(self.u), "length": self.u.shape[1]}
        dt, solver = self.behaviour.resolve(**self.step)
        parts = f" in {self.behaviour.substeps} substeps" if self.behaviour.substeps > 1 else ""
        step = f", {solver} {dt}{parts}" if solver else ""
        title = f"{about['model']} on {self.inputs}{step}{what}"
        rows = plain([row for block in blocks for row in shared.rows_of(block)])
        values = {f"{prefix}{name}": x for prefix, one in found.items() for name, x in vars(one).items()}
        numbers = {name: x for name, x in values.items() if isinstance(x, int | float)}
        shared.emit(
            {**about, **looked, "certificate": proven, **numbers, **facts, "rows": rows},
            shared.table(rows, blocks[0], title=title),
            *notes,
            proven["verdict"],
            columns=blocks[0],
            arrays={name: x for name, x in values.items() if hasattr(x, "__len__")},
            figure=lambda: figure(title=f"{about['model']}: {self.name}"),
            **self.outputs,
        )


def inspecting(name: str, *own: Decorator) -> Decorator:
    """A command on RUN|CONFIG or --module with options of its own: a function of a `Driven` network."""

    def decorate(function: Callable[..., None]) -> Callable[..., Any]:
        @click.command(name, cls=shared.Command, help=function.__doc__)
        @click.argument("source", metavar="[RUN|CONFIG]", required=False)
        @shared.together(*own)
        @option("--module", metavar="FILE.py:NAME", help=MODULE)
        @option("--data", type=shared.PATH, metavar="FILE", help=DATA)
        @option("--initial", is_flag=True, help="of a run, the weights before training")
        @shared.step_options
        @option("--task", help="drive with another task than the run's own")
        @option("--split", type=click.Choice(["train", "val", "test"]), help="[default: val]")
        @option("--samples", type=int, help="number of input sequences  [default: 4]")
        @option("--data-dir", help="where the data are, if they have moved")
        @shared.output_options
        def command(**given: Any) -> None:
            source, module, data = (given.pop(key) for key in ("source", "module", "data"))
            changes = {key: given.pop(key) for key in CHANGES}
            outputs = {key: given.pop(key) for key in ("as_json", "csv", "npz", "plot")}
            function(Driven(source, module, data, changes, outputs), **given)

        return command

    return decorate


@inspecting(
    "spectrum",
    option("--at", type=shared.integers, metavar="N,N,...", help="these steps  [default: five]"),
)
def spectrum_command(net: Driven, at: tuple[int, ...] | None) -> None:
    """Spectra of the Jacobian, of its symmetric part in the metric, and of the solver's step.

    For trained weights, those of the initial ones are shown beside them, for the first sample. A map,
    such as an LSTM, has the spectrum of its step only.
    """
    from ctrnn_assembly.diagnostics.spectrum import module_spectra, spectrum_along

    T, kind = net.u.shape[1], net.kind
    at = tuple(range(0, T + 1, max(1, T // 4))) if at is None else at
    if not all(0 <= step <= T for step in at):
        raise ConfigError(f"--at must be in 0..{T}, the steps of a sequence; got {at}.")

    def along(layer: Any, u: Any) -> Any:
        steps = [step for step in at if step <= len(u)] or [len(u)]
        return spectrum_along(layer, u, at=steps, **net.step)

    before, found = [], [along(net.behaviour, u) for u in net.sequences]
    if kind not in ("initial", "given"):
        before = [along(replace(net.run, initial=True).build(double=True).core, net.sequences[0])]
    spectra = [("initial", 0, s) for s in before] + [(kind, k, s) for k, s in enumerate(found)]
    blocks = [
        (
            Column("weights", "weights", values=weights),
            Column("sample", "sample", "d", k),
            Column("time", "time", ".4g", s.times),
            Column("abscissa", "max Re eig J", ".5f", s.abscissa),
            Column("local_rate", "local rate", ".5f", s.local_rates),
            Column("step_radius", "step radius", ".6f", s.step_radius),
        )
        for weights, k, s in spectra
    ]
    alone = module_spectra(net.behaviour, net.sequences[0][-1:], found[0].x[-1:])
    modules = {
        "module_abscissa": [values.real.max().item() for values in alone],
        "module_radius": [values.abs().max().item() for values in alone],
    }
    results = {f"{weights}{k}_": s for weights, k, s in spectra}
    figure = partial(drawn, "diagnostics.spectrum_figure", found, before, net.certificate)
    net.show(results, *blocks, what="", notes=[WARNING], figure=figure, blocks=modules, warning=WARNING)


@inspecting(
    "lyapunov",
    option("--k", type=int, help="number of leading exponents  [default: 8, or all of a smaller net]"),
    option("--steps", default=2000, help="steps that count"),
    option("--transient", type=int, help="steps discarded before  [default: a tenth of them]"),
)
def lyapunov_command(net: Driven, k: int | None, **settings: Any) -> None:
    """The k leading exponents of the solver's step, conditional on the input, by QR.

    Sequences shorter than the run are followed by the next ones. A largest exponent below 0 is an
    average along these runs: nearby trajectories approached each other. The certificate bounds all
    runs, those of a time T by log(cond) / (2 T) more. --plot and --npz show how the estimates ran.
    """
    from ctrnn_assembly.certificates.result import up

    lengths = {len(u) for u in net.sequences}
    if len(lengths) > 1:
        raise ConfigError("sequences of different lengths cannot follow one another; use --samples 1.")
    u, k = net.u[:, : lengths.pop()], min(8, net.behaviour.size) if k is None else k
    settings |= {"generator": net.generator, **net.step}
    found = ctrnn_assembly.lyapunov_exponents(net.behaviour, u, k=k, **settings)
    step, condition = net.certificate.step, net.certificate.metric.condition_number
    bound = None if step is None else step.exponent_bound
    columns = [
        Column("index", "", "d", range(1, k + 1)),
        Column("exponent", "exponent", ".6f", found.exponents),
        Column("standard_error", "standard error", ".6f", found.errors),
        Column("half_way", "after half the time", ".6f", found.history[(len(found.history) - 1) // 2]),
        Column("factor_of_a_step", "factor of a step", ".6f", (found.exponents * found.dt).exp()),
    ]
    notes = [f"{len(u)} runs of {found.steps} steps, after {found.transient}", "no certified bound"]
    if bound is not None:
        so_short = bound + math.log(condition) / (2 * found.steps * found.dt)
        notes[1] = f"certified: at most {up(bound, 6)} in the long run, {up(so_short, 6)} in these runs"
    what = ": exponents per unit of time"
    figure = partial(drawn, "diagnostics.lyapunov_figure", found, bound=bound)
    net.show({"": found}, columns, what=what, notes=notes, figure=figure, certified_bound=bound)


@inspecting(
    "contraction",
    option("--pairs", default=8, help="pairs at each distance and sequence"),
    option("--spread", default=1.0, help="standard deviation of their initial states"),
    option("--worst", is_flag=True, help="start each pair where its first step shrinks least"),
    option("--twin", is_flag=True, help=TWIN),
    option("--theorem6", is_flag=True, help="monitor corrected Theorem 6: one module, smooth phi"),
)
def contraction_command(net: Driven, twin: bool, theorem6: bool, **settings: Any) -> None:
    """Start pairs of trajectories apart, by 1e-6 and by 1, and drive both with the same input.

    The twin has the same modules and the same strength of coupling, but the modules of a pair excite
    each other in the metric, where the original ones have feedback of opposite signs.

    Theorem 6 has a metric that moves with the slopes; its conditions hold or fail along these runs, and
    prove nothing of others.
    """
    from ctrnn_assembly.certificates.result import factor
    from ctrnn_assembly.diagnostics.contraction import excitatory_twin, measure_contraction
    from ctrnn_assembly.diagnostics.theorem6 import monitor_theorem6

    certificate, metric = net.certificate, net.certificate.metric.matrix  # that the numbers hold in
    settings |= {"generator": net.generator, **net.step}
    found = measure_contraction(net.behaviour, net.u, metric=metric, **settings)
    results: Results = {"": found}
    step = certificate.step
    layers = certificate.of_layers  # then distances are Euclidean, and may grow first
    bound = None if step is None or not step.certified or layers else step.sample_factor
    at = range(0, found.steps + 1, max(1, found.steps // 20))
    times = found.times[at]
    of_step = None if bound is None else [bound**k for k in at]
    if layers:
        of_step = [certificate.jacobian_bound(k) for k in at]
    of_flow = None if net.rate is None or layers else (-net.rate * times).exp()

    def largest(distances: Any) -> Any:
        return (distances[:, at] / distances[:, :1]).amax(0)

    columns = [
        Column("time", "time", ".4g", times),
        Column("metric", "in the metric", ".4g", largest(found.distances), "overflow"),
        Column("euclidean", "Euclidean", ".4g", largest(found.euclidean), "overflow"),
        Column("certified_step", "certified (step)", ".4g", of_step),
        Column("certified_continuous", "certified (continuous)", ".4g", of_flow),
    ]
    said = "not certified in this distance" if layers else "not certified"
    said = said if bound is None else f"at most {factor(bound)} certified"
    notes = [
        f"largest factor from sample to sample: {found.factor:.6f} measured, {said}",
        f"Euclidean distances grew {found.euclidean_peak:.4g}-fold at most",
    ]
    if twin:
        settings |= {"metric": metric or net.behaviour.metric, "dt": found.dt, "solver": found.solver}
        excited = excitatory_twin(net.behaviour, metric)
        results["twin_"] = measure_contraction(excited, net.u, **settings | {"generator": net.generator})
        far = largest(results["twin_"].distances)
        columns.append(Column("twin", "twin, in the metric", ".4g", far, "overflow"))
    if theorem6:
        results["theorem6_"] = seen = monitor_theorem6(net.behaviour, net.u)
        verdict = f"Theorem 6 {'holds' if seen.holds else 'does not hold'} along these runs"
        notes.append(f"{verdict}: c {seen.c:.4g}, rate {seen.rate:.4g}; {seen.note}")
    what = f": largest distance of {found.pairs} pairs, relative to the start"
    figure = partial(drawn, "diagnostics.contraction_figure", found, results.get("twin_"), certificate)
    net.show(results, columns, what=what, notes=notes, figure=figure, certified_factor=bound)


@inspecting(
    "fixed-points",
    option("--input", "held", type=click.Choice(["mean", "last", "zero"]), default="mean", help=INPUT),
    option("--starts", default=32, help="states to start from"),
    option("--spread", default=2.0, help="standard deviation of the starts"),
)
def fixed_points_command(net: Driven, held: str, **settings: Any) -> None:
    """Search by Newton's method from many starts. A contracting network has exactly one, a stable one.

    Finding one fixed point, or none, proves nothing by itself: the certificate beside it does.
    """
    inputs = [{"mean": u.mean(0), "last": u[-1], "zero": 0 * u[-1]}[held] for u in net.sequences]
    inputs = inputs[:1] if held == "zero" else inputs
    find = partial(ctrnn_assembly.find_fixed_points, net.behaviour, **settings)
    found = [find(u=u, generator=net.generator) for u in inputs]
    blocks = [
        (
            Column("sample", "sample", "d", sample),
            Column("point", "point", "d", range(len(p))),
            Column("kind", "kind", values=p.kinds),
            Column("norm", "|x|", ".5f", p.points.norm(dim=1)),
            Column("residual", "residual", ".1e", p.residuals),
            Column("abscissa", "max Re eig J", ".5f", p.eigenvalues.real.amax(1)),
            Column("hits", "starts that ended here", "d", p.hits),
        )
        for sample, p in enumerate(found)
    ]
    results = {f"sample{k}_": points for k, points in enumerate(found)}
    what = f": fixed points under the {held} input, {settings['starts']} starts"
    notes = [f"sample {k}: {points.message}" for k, points in enumerate(found)]
    figure = partial(drawn, "diagnostics.fixed_points_figure", found, rate=net.rate)
    net.show(results, *blocks, what=what, notes=notes, figure=figure, input=held, messages=notes)


@inspecting(
    "gsc",
    option("--every", type=int, help="steps between values  [default: a sixteenth of T]"),
    option("--probes", type=int, help="random probes of the estimate  [default: exact]"),
)
def gsc_command(net: Driven, every: int | None, probes: int | None) -> None:
    """GSC(t, T) = ||dx_T / dx_t||_qm |x_t| / |x_T|: how gradients grow or fade from the last step back.

    Exact values take as many Jacobian products through the whole sequence as the state has numbers;
    --probes estimates them from so many. Where a state is zero (the first one) there is no value.
    """
    T = net.u.shape[1]
    how: Any = {"every": max(1, T // 16) if every is None else every, "generator": net.generator}
    found = ctrnn_assembly.gsc_over_time(net.behaviour, net.u, probes=probes, **how, **net.step)
    exact = "exact" if probes is None else "estimated"
    notes = [f"{exact}, by {found.products} Jacobian products through the sequence"]
    bounds = [net.certificate.jacobian_bound(T - point) for point in found.points]
    columns = [
        Column("step", "t (steps)", "d", found.points),
        Column("gsc", "GSC(t, T)", ".4g", found.value),
        Column("standard_error", "standard error", ".4g", found.standard_error),
        Column("jacobian", "|dx_T/dx_t|", ".4g", found.jacobian),
        Column("jacobian_bound", "certified bound", ".4g", bounds),
        Column("state", "|x_t|", ".4g", found.size),
    ]
    what = f": GSC(t, T), T = {T} steps"
    figure = partial(drawn, "diagnostics.gsc_figure", shared.rows_of(columns))
    net.show({"": found}, columns, what=what, notes=notes, figure=figure, probes=probes)
