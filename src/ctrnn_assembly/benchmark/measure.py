"""The whole measurement, as plain values: agreement, warm-up, rounds, rows.

Everything is timed once a round, in a new order each, so that all see one machine.

Peak memory, of a GPU alone, is what its allocator hands out in the warm-up.
"""

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.benchmark.contestants import CONTESTANTS, PRODUCTS, Contestant, Workload
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.errors import ConfigError, SolverError, check_within
from ctrnn_assembly.solvers.fused import few_blocks
from ctrnn_assembly.training.provenance import provenance

ROUNDS = 7  # below which a median says little
NOISE = 1.25  # median over minimum, above which a machine is too noisy to trust its medians
PRODUCT_STEPS = 200  # products in one timing of them: a single one would time the clock
COUPLINGS = {"all": 0, "random:5": 5, "random:20": 20}  # and the pairs that they need
MEGABYTE = 1e6
Track = Callable[[Iterable[Any], str], Iterable[Any]]  # the sequence, with a bar for its stage
Report = dict[str, Any]


@dataclass
class Timing:
    """One contestant on one problem, forward and backward, and its seconds so far."""

    contestant: Contestant
    problem: Problem
    workload: Workload
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def noise(self) -> float:
        """Median over minimum: 1 on a quiet machine."""
        least = min(self.seconds)
        return self.median / least if least > 0 else 1.0

    def time(self) -> float:
        """Seconds of one run, with the work of a GPU finished before and after."""
        finish = torch.cuda.synchronize if self.problem.device == "cuda" else lambda: None
        finish()
        start = perf_counter()
        self.workload.run()
        finish()
        return perf_counter() - start

    def warm(self) -> None:
        """The first run; on a GPU also its peak memory, buffers that a backend keeps included."""
        if self.problem.device != "cuda":
            self.workload.run()
            return
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.time()
        self.peak_mb = (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def schedule(timings: Sequence[Timing], rounds: int) -> list[Timing]:
    """Each once a round, in a new order each."""
    order = random.Random(0)
    return [timing for _ in range(rounds) for timing in order.sample(list(timings), len(timings))]


def measure(
    size: Problem,
    couplings: Sequence[str] = (),
    *,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = ROUNDS,
    only: Sequence[str] = (),
    track: Track = lambda sequence, stage: sequence,
) -> Report:
    """Check, warm up and time every contestant; Ctrl-C ends the rounds and keeps what was measured.

    Without `couplings`, those of `COUPLINGS` that have enough pairs; without `only`, every contestant.

    Returns `rows`, a dict for each contestant and coupling; what they depend on; and
    `notes`, sentences for the reader. ConfigError for what cannot be run, SolverError if ours differ
    from the plain loop.
    """
    check_within("[1, inf)", rounds=rounds, threads=1 if threads is None else threads)
    torch.set_num_threads(threads or torch.get_num_threads())
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise ConfigError("--device cuda needs a GPU that torch can use; there is none. Use cpu.")
    size = replace(size, device="cuda" if device == "auto" and gpu else device.replace("auto", "cpu"))
    report: Report = {"device": size.device, "rounds": rounds, **size.size, "modules": size.modules}
    report |= {"dt": size.dt, "size": str(size), "notes": []}
    timings = []
    cases = _cases(size, couplings, only)
    for contestant, problem in track(cases, "checking against the plain loop"):
        if reason := check_agreement(contestant, problem):
            report["notes"].append(reason)
        else:
            timings.append(Timing(contestant, problem, contestant.build(problem)))
    repeated, here = replace(size, steps=PRODUCT_STEPS), size.device
    products = [Timing(c, repeated, c.build(repeated)) for c in PRODUCTS if c.is_present(here)]
    for timing in track([*timings, *products], "warming up"):
        timing.warm()
    report["interrupted"] = False
    try:
        for timing in track(schedule([*timings, *products], rounds), "timing"):
            timing.seconds.append(timing.time())
    except KeyboardInterrupt:
        report["interrupted"] = True
    return report | facts([timing for timing in timings if timing.seconds], products, report)


def facts(timings: Sequence[Timing], products: Sequence[Timing], report: Report) -> Report:
    """What the timings say, and the notes with what is to be doubted."""
    noise, notes = noise_of([*products, *timings]), list(report["notes"])
    rates: dict[str, dict[str, float]] = {}  # operations a second, by precision
    for one in products:
        if one.seconds:
            operations = 2 * one.problem.steps * one.problem.batch * one.problem.n**2
            rate = {"median": operations / one.median, "max": operations / min(one.seconds)}
            rates[one.contestant.precision] = rate
    if report["rounds"] < ROUNDS:
        few = f"{report['rounds']} rounds are fewer than {ROUNDS}: the medians say little. "
        notes.append(f"{few}Use --rounds {ROUNDS}.")
    if report["interrupted"]:
        notes.append("interrupted: these are the rounds until then.")
    return {
        "rows": [row_of(timing, rates) for timing in timings],
        "product_rate": rates,
        **provenance(device=report["device"]),
        "noisy": bool(noise),
        "notes": [*notes, *noise],
    }


def _cases(
    size: Problem, couplings: Sequence[str], only: Sequence[str]
) -> list[tuple[Contestant, Problem]]:
    """Contestants and what they solve."""
    here = {name: c for name, c in CONTESTANTS.items() if c.is_present(size.device)}
    for name in set(only) - set(here):
        there = f"there are: {', '.join(here)}"
        raise ConfigError(f"contestant {name!r} cannot run on {size.device}; {there}.")
    most = size.modules * (size.modules - 1) // 2
    names = list(dict.fromkeys(couplings)) or [k for k, least in COUPLINGS.items() if most >= least]
    cases = []
    for coupling, (name, one) in product(names, here.items()):
        under = coupling if one.coupled else "all"  # what has no coupling is timed and listed once
        problem = replace(size, coupling=under, blocks=one.blocks)
        fits = problem.terms.pairs or not name.startswith("torchdyno")  # whose assembly needs a coupling
        if one.backend == "persistent":  # which has no sparse L
            fits = few_blocks(problem.terms) is None
        if fits and (coupling == names[0] or one.coupled) and (not only or name in only):
            cases.append((one, problem))
    return cases


def check_agreement(contestant: Contestant, problem: Problem) -> str:
    """Correctness before speed: refuse what differs from the plain loop of the same steps.

    The plain loop runs in float64, the contestant as it is timed, both for a few steps of the given n.
    Gradients of zeros in a tensor that is not all zeros are left out: a solver that uses them has none.
    SolverError if they differ by more than its tolerance. Returns why it cannot run here, if that is so.
    """
    limit = contestant.tolerance
    if limit is None:
        return ""
    problem = replace(problem, batch=min(problem.batch, 4), steps=min(problem.steps, 8))
    found = contestant.build(problem)
    try:
        found_gradients = found.run()
    except SolverError as error:
        return f"{contestant.name} with {problem.coupling} was left out: {error}"
    wanted = contestant.reference(replace(problem, device="cpu", dtype=torch.float64))
    with torch.no_grad():
        states = _difference(found.last(), wanted.last(), torch.ones(()))
    differences = [
        _difference(a, b, (leaf != 0).cpu() if bool(leaf.any()) else torch.ones(()))
        for a, b, leaf in zip(found_gradients, wanted.run(), problem.parameters, strict=True)
    ]
    gradients = float(torch.tensor(differences).max())  # NaN if one is
    # Written so that NaN is refused: it is never within the tolerance.
    if not (states <= limit and gradients <= limit):
        raise SolverError(
            f"{contestant.name} with coupling {problem.coupling} on {problem.device} differs from the "
            f"plain loop by {states:.2g} in its states and {gradients:.2g} in its gradients (relative "
            f"norms; at most {limit:g} is accepted). Nothing was timed; leave it out, and report it."
        )
    return ""


def _difference(found: Tensor, wanted: Tensor, free: Tensor) -> float:
    """Relative to the norm of what is wanted; 0 where both are zero, as behind a unit that is off."""
    wanted = wanted * free
    return float((found.cpu() * free - wanted).norm() / wanted.norm().clamp_min(1e-30))


def row_of(timing: Timing, rates: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What was measured of one contestant; `share` is of the rate of products of its precision."""
    one, problem, median = timing.contestant, timing.problem, timing.median
    operations = one.operations(problem)
    rate = rates.get(one.precision)
    return {
        "name": one.name,
        **problem.size,
        "coupling": problem.coupling,
        "median_s": median,
        "min_s": min(timing.seconds),
        "peak_mb": None if timing.peak_mb is None else round(timing.peak_mb, 3),
        "device": problem.device,
        "rounds": len(timing.seconds),
        "useful_operations": operations,
        "share": None if rate is None else operations / median / rate["median"],
    }


def noise_of(timings: Sequence[Timing]) -> list[str]:
    """A sentence if the machine is too noisy to trust, by its products or by the contestants."""
    noisy = [timing for timing in timings if timing.seconds and timing.noise > NOISE]
    if not noisy:
        return []
    worst = max(noisy, key=lambda timing: timing.noise)
    label = f"{worst.contestant.name} {worst.problem.coupling} {worst.problem.device}"
    return [
        f"this machine is too noisy to trust the medians: {len(noisy)} of {len(timings)} are more than "
        f"{NOISE} times their minimum, {label} {worst.noise:.2f} times. Compare the minima, or "
        "run again when nothing else runs."
    ]


def sentences(report: Report) -> Iterator[str]:
    """What the numbers depend on, and what was checked."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield f"{report['hardware']}, threads: {report['threads']}; {versions}"
    for dtype, rate in report["product_rate"].items():
        yield (
            f"product {report['batch']} x {report['n']} x {report['n']}, {dtype}: "
            f"{rate['median'] / 1e9:.1f} GFLOP/s (median; at most {rate['max'] / 1e9:.1f}); "
            "share is of the median"
        )
    tolerances = {one.tolerance for one in CONTESTANTS.values() if one.tolerance is not None}
    yield (
        "checked before timing: states and gradients agree with the plain loop in float64, within "
        f"{min(tolerances):g} (relative norms), of rounded operands within {max(tolerances):g}"
    )
