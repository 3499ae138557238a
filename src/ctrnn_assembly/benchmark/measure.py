"""The whole measurement, as plain values: agreement, warm-up, rounds, rows.

Everything is timed once a round, in a new order each, so that all see one machine.

A contestant can be no faster than the machine multiplies (the useful operations), moves the states
that are stored for the gradient (each is written, and read), or calls torch, as often as it does. The
largest of these times is its limit, and `share` that of its own: minima of both, so that noise is least.

Peak memory, of a GPU alone, is what its allocator hands out in the warm-up.
"""

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctrnn_assembly.benchmark import contestants
from ctrnn_assembly.benchmark.contestants import LIMITS, WORKS, Contestant, Settings, Workload
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.errors import ConfigError, SolverError, check_known, check_within
from ctrnn_assembly.training.fit import denormals_flushed
from ctrnn_assembly.training.provenance import provenance

ROUNDS = 7  # below which a median says little
NOISE = 1.25  # median over minimum, above which a machine is too noisy to trust its medians
# What one timing of a limit does.
AMOUNTS = dict.fromkeys(LIMITS, 2 * contestants.SQUARE**3)  # operations
AMOUNTS |= {"bytes": 8 * contestants.COPIED, "calls": contestants.CALLS}
Track = Callable[[Iterable[Any], str], Iterable[Any]]  # the sequence, with a bar for its stage
Report = dict[str, Any]


class Calls(TorchDispatchMode):
    """Counts torch's operations, but for views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@dataclass
class Timing:
    """One contestant on one problem, forward and backward, and its seconds so far."""

    contestant: Contestant
    problem: Problem
    workload: Workload
    work: str = ""  # its name
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    calls: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def noise(self) -> float:
        """Median over minimum: 1 on a quiet machine."""
        return self.median / min(self.seconds)

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
            with Calls() as calls:
                self.workload.run()
            self.calls = calls.count
            return
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.time()
        self.peak_mb = (torch.cuda.max_memory_allocated() - before) / 1e6


def schedule(timings: Sequence[Timing], rounds: int) -> list[Timing]:
    """Each once a round, in a new order each."""
    order = random.Random(0)
    return [timing for _ in range(rounds) for timing in order.sample(list(timings), len(timings))]


def measure(
    size: Settings,
    works: Sequence[str] = (),
    *,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = ROUNDS,
    only: Sequence[str] = (),
    track: Track = lambda sequence, stage: sequence,
) -> Report:
    """Check, warm up and time every contestant; Ctrl-C ends the rounds and keeps what was measured.

    `size` are fields of `Problem` in place of those of the works; without `works` all of them are done,
    but for those that need more pairs of modules than there are, and without `only` every contestant.

    Returns `rows`, a dict for each work and contestant; what they depend on; and `notes`, sentences for
    the reader. ConfigError for what cannot be run, SolverError if ours differ from the plain loop.
    """
    check_within("[1, inf)", rounds=rounds, threads=1 if threads is None else threads)
    torch.set_num_threads(threads or torch.get_num_threads())
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise ConfigError("--device cuda needs a GPU that torch can use; there is none. Use cpu.")
    device = "cuda" if device == "auto" and gpu else device.replace("auto", "cpu")
    report: Report = {"device": device, "rounds": rounds, "notes": []}
    timings = []
    with denormals_flushed():
        cases = _cases({**size, "device": device}, works, only)
        for work, contestant, problem in track(cases, "checking against the plain loop"):
            if reason := check_agreement(contestant, problem):
                report["notes"].append(reason)
            else:
                timings.append(Timing(contestant, problem, contestant.build(problem), work))
        plain = Problem(device=device)
        limits = [Timing(c, plain, c.build(plain), k) for k, c in LIMITS.items() if c.is_present(device)]
        for timing in track([*timings, *limits], "warming up"):
            timing.warm()
        report["interrupted"] = False
        try:
            for timing in track(schedule([*timings, *limits], rounds), "timing"):
                timing.seconds.append(timing.time())
        except KeyboardInterrupt:
            report["interrupted"] = True
    return report | facts([timing for timing in timings if timing.seconds], limits, report)


def facts(timings: Sequence[Timing], limits: Sequence[Timing], report: Report) -> Report:
    """What the timings say, and the notes with what is to be doubted."""
    noise, notes = noise_of([*limits, *timings]), list(report["notes"])
    # Of the machine, a second: operations by precision, bytes, calls.
    rates = {one.work: AMOUNTS[one.work] / min(one.seconds) for one in limits if one.seconds}
    if report["rounds"] < ROUNDS:
        few = f"{report['rounds']} rounds are fewer than {ROUNDS}: the medians say little. "
        notes.append(f"{few}Use --rounds {ROUNDS}.")
    if report["interrupted"]:
        notes.append("interrupted: these are the rounds until then.")
    rows = [row_of(timing, rates) for timing in timings]
    known = {(row["work"], row["name"]): row for row in rows}
    for row, timing in zip(rows, timings, strict=True):
        first = timing.contestant.beside or WORKS[timing.work][1][0].name
        if rival := known.get((timing.work, first)):
            row |= compared(row, rival)
    return {
        "rows": rows,
        "rates": rates,
        **provenance(device=report["device"]),
        "noisy": bool(noise),
        "notes": [*notes, *noise],
    }


def compared(row: Report, other: Report) -> Report:
    """How many times as long as another it takes; by useful operation where the problems differ in n."""
    amount = 1.0 if row["n"] == other["n"] else other["useful_operations"] / row["useful_operations"]
    times = {"times": "median_s", "times_min": "min_s"}
    return {"beside": other["name"]} | {k: amount * row[s] / other[s] for k, s in times.items()}


def _cases(
    size: Settings, works: Sequence[str], only: Sequence[str]
) -> list[tuple[str, Contestant, Problem]]:
    for name in works:
        check_known("work", name, tuple(WORKS))
    pairs = [(work, one) for work in dict.fromkeys(works or WORKS) for one in WORKS[work][1]]
    present = {one.name: one.is_present(size["device"]) for _, one in pairs}
    for name in only:
        check_known("contestant", name, present)
        if not present[name]:
            there = f"there are: {', '.join(sorted(one for one in present if present[one]))}"
            raise ConfigError(f"contestant {name!r} cannot run on {size['device']}; {there}.")
    cases = []
    for work, one in pairs:
        problem = Problem(**{**WORKS[work][0], **one.changes, **size})
        possible = present[one.name] and (problem.fits or works or "coupling" in size)
        if possible and (not only or one.name in only) and one.is_for(problem):
            cases.append((work, one, problem))
    return cases


def check_agreement(contestant: Contestant, problem: Problem) -> str:
    """Correctness before speed: refuse what differs from the plain loop of the same steps.

    The plain loop runs in float64, the contestant as it is timed, both for some steps of the given n.
    Gradients of zeros in a tensor that is not all zeros are left out: a solver that uses them has none.
    SolverError if they differ by more than its tolerance. Returns why it cannot run here, if that is so.
    """
    if (limit := contestant.tolerance) is None:
        return ""
    batch = min(problem.batch, 4)
    steps = max(8, 2**16 // (batch * problem.n))  # below which no loop is compiled
    problem = replace(problem, batch=batch, steps=min(problem.steps, steps))
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
        for a, b, leaf in zip(found_gradients, wanted.run(), found.parameters, strict=True)
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


def row_of(timing: Timing, rates: Mapping[str, float]) -> dict[str, Any]:
    """What was measured of one contestant, beside the limit that is the highest."""
    one, problem, least = timing.contestant, timing.problem, min(timing.seconds)
    operations = one.operations(problem)
    stored = 2 * one.stored * problem.steps * problem.x0.numel() * problem.x0.itemsize
    amounts = {one.precision: operations, "bytes": stored, "calls": timing.calls}
    limits = {name: amount / rates[name] for name, amount in amounts.items() if name in rates}
    limit = max(limits, key=lambda name: limits[name], default=None)
    return {
        "work": timing.work,
        "name": one.name,
        "size": str(problem),
        **problem.size,
        "coupling": problem.coupling,
        "median_s": timing.median,
        "min_s": least,
        "peak_mb": None if timing.peak_mb is None else round(timing.peak_mb, 3),
        "device": problem.device,
        "rounds": len(timing.seconds),
        "useful_operations": operations,
        "calls": timing.calls,
        "limit": {one.precision: "products"}.get(limit or "", limit),
        "share": None if limit is None else limits[limit] / least,
    }


def noise_of(timings: Sequence[Timing]) -> list[str]:
    """A sentence if the machine is too noisy to trust, by its products or by the contestants."""
    noisy = [timing for timing in timings if timing.seconds and timing.noise > NOISE]
    if not noisy:
        return []
    worst = max(noisy, key=lambda timing: timing.noise)
    label = f"{worst.contestant.name} {worst.work} {worst.problem.device}"
    return [
        f"this machine is too noisy to trust the medians: {len(noisy)} of {len(timings)} are more than "
        f"{NOISE} times their minimum, {label} {worst.noise:.2f} times. Compare the minima, or "
        "run again when nothing else runs."
    ]


def sentences(report: Report) -> Iterator[str]:
    """What the numbers depend on, and what was checked."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield f"{report['hardware']}, threads: {report['threads']}; {versions}"
    units = {"bytes": (1e9, "GB/s moved"), "calls": (1e6, "million calls a second")}
    rates = ((*units.get(k, (1e9, f"GFLOP/s of {k} products")), x) for k, x in report["rates"].items())
    yield f"limits: {', '.join(f'{x / unit:.1f} {what}' for unit, what, x in rates)}"
    yield (
        "checked before timing: states and gradients agree with the plain loop in float64, within 1e-05 "
        "(relative norms), of rounded operands within 0.01, of stacks and fields of one's own 0.001"
    )
