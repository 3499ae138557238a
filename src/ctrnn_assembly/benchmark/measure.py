"""The whole measurement, as plain values: agreement, warm-up, rounds, memory, rows.

On the first device every contestant is timed, on further ones ours only, to say which is faster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.benchmark.contestants import KINDS, Contestant, check_choice, chosen
from ctrnn_assembly.benchmark.memory import peak_memories
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.benchmark.timing import NOISE, Clock, Timing, product_timings, schedule
from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.training.provenance import hardware, versions

ROUNDS = 7  # below which a median says little
BUDGET = 240.0  # seconds
COUPLINGS = {"all": 0, "random:5": 5, "random:20": 20}  # and the pairs that they need
CHECKED_STEPS, CHECKED_BATCH = 8, 4
Track = Callable[[Sequence[Any], str], Iterable[Any]]  # the sequence, with a bar for its stage
Case = tuple[Contestant, Problem]


def measure(
    size: Problem,
    couplings: Sequence[str] = (),
    *,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = ROUNDS,
    backends: Sequence[str] = (),
    only: Sequence[str] = (),
    memory: bool = True,
    budget: float = BUDGET,
    clock: Clock = time.perf_counter,
    track: Track = lambda sequence, stage: sequence,
) -> dict[str, Any]:
    """Check, warm up and time every contestant; Ctrl-C ends the rounds and keeps what was measured.

    Args:
        size: whose n, units, batch and steps are taken.
        couplings: topologies by name; a slow contestant is kept for the first one. Empty for those of
            `COUPLINGS` that have enough pairs.
        device: cpu, cuda, or auto: the GPU where there is one, with ours on the CPU as well.
        threads: of the CPU; None for torch's own.
        backends, only: of ours the backends to time, of all the names; empty for all.
        memory: whether to measure peak memory.
        budget: seconds for the rounds, see `within_budget`; 0 for no limit.

    Returns:
        `rows`, a dict for each contestant, coupling, device and kind; what they depend on; and `notes`,
        sentences for the reader.

    Raises:
        ConfigError: for what cannot be run; SolverError: if ours differ from the plain loop.
    """
    _check(rounds, threads, budget)
    if threads is not None:
        torch.set_num_threads(threads)
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices = _devices(device, present)
    couplings = list(dict.fromkeys(couplings)) or _fitting(size)
    check_choice(devices, backends, only)
    cases, refused = runnable(_cases(size, couplings, devices, backends, only))
    agreement = []
    for case in track(cases, "checking against the plain loop"):
        agreement += check_agreement(*case)
    timings = [Timing.of(*case, kind) for case in cases for kind in KINDS]
    products = [one for device in devices for one in product_timings(replace(size, device=device))]
    for timing in track(timings, "warming up"):
        timing.warm(clock)
    timings, dropped = within_budget(timings, rounds, budget, couplings[0])
    interrupted = False
    try:
        for timing in track(schedule([*timings, *products], rounds), "timing"):
            timing.seconds.append(timing.time(clock))
        if memory:
            fill_memories(timings, track)
    except KeyboardInterrupt:
        interrupted = True
    timings = [timing for timing in timings if timing.seconds]
    noise = noise_of([*products, *timings])
    return {
        "rows": [row_of(timing, products) for timing in timings],
        "product_rate": rates_of(products),
        "hardware": ", ".join(map(hardware, devices[::-1])),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "noisy": bool(noise),
        "interrupted": interrupted,
        "agreement": agreement,
        **size.size,
        "modules": size.modules,
        "dt": size.dt,
        "rounds": rounds,
        "devices": devices,
        "devices_present": present,
        "faster_device": faster_device(timings),
        "not_timed": dropped,
        "notes": [*refused, *_notes(rounds, dropped, interrupted), *noise],
    }


def _check(rounds: int, threads: int | None, budget: float) -> None:
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1; got {rounds}. Use --rounds {ROUNDS}.")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1; got {threads}. Leave --threads out.")
    if not 0 <= budget < math.inf:
        raise ConfigError(f"budget must be 0 seconds (no limit) or more; got {budget}. Use --budget 0.")


def _devices(device: str, present: list[str]) -> list[str]:
    """The one for all contestants first."""
    if device == "auto":
        return present[::-1]
    if device not in present:
        raise ConfigError("--device cuda needs a GPU that torch can use; there is none. Use cpu.")
    return [device]


def _fitting(size: Problem) -> list[str]:
    """The default couplings for which there are enough pairs."""
    pairs = size.modules * (size.modules - 1) // 2
    return [name for name, count in COUPLINGS.items() if count <= pairs]


def _cases(
    size: Problem,
    couplings: Sequence[str],
    devices: Sequence[str],
    backends: Sequence[str],
    only: Sequence[str],
) -> Iterator[Case]:
    for device in devices:
        here = chosen(device, backends, only)
        for coupling in couplings:
            for one in here:
                problem = replace(size, coupling=coupling, blocks=one.blocks, device=device)
                if device != devices[0] and not one.is_ours:
                    continue
                if not one.coupled and coupling != couplings[0]:
                    continue
                if problem.pairs or not one.name.startswith("torchdyno"):  # which needs a coupling
                    yield one, problem


def runnable(cases: Iterator[Case]) -> tuple[list[Case], list[str]]:
    """Without the backends that this machine or problem is not for, and a sentence on each of these."""
    kept, notes = [], []
    for contestant, problem in cases:
        try:
            if contestant.backend is not None:
                contestant.build(_few(problem)).gradients()
            kept.append((contestant, problem))
        except SolverError as error:
            notes.append(f"{contestant.name} with {problem.coupling} was left out: {error}")
    return kept, notes


def check_agreement(contestant: Contestant, problem: Problem) -> list[dict[str, Any]]:
    """Correctness before speed: the relative differences from the plain loop of the same steps.

    The plain loop runs in float64, the contestant as it is timed, both for a few steps of the given n.
    Only entries that are free are compared: where L is zero by its pairs, or W by being diagonal, a
    solver that uses the zeros has no gradient to give.

    Raises:
        SolverError: if they are more than its tolerance.
    """
    if contestant.tolerance is None:
        return []
    problem = _few(problem)
    found = contestant.build(problem)
    wanted = contestant.reference(replace(problem, device="cpu", dtype=torch.float64))
    with torch.no_grad():
        states = _difference(found.last(), wanted.last())
    differences = [
        _difference(_free(a, problem, leaf), _free(b, problem, leaf))
        for a, b, leaf in zip(found.gradients(), wanted.gradients(), problem.parameters, strict=True)
    ]
    gradients = math.nan if any(map(math.isnan, differences)) else max(differences)
    # Written so that NaN is refused: it is never within the tolerance.
    if not (states <= contestant.tolerance and gradients <= contestant.tolerance):
        raise SolverError(
            f"{contestant.name} with coupling {problem.coupling} on {problem.device} differs from the "
            f"plain loop by {states:.2g} in its states and {gradients:.2g} in its gradients (relative "
            f"norms; at most {contestant.tolerance:g} is accepted). Nothing was timed; leave it out, "
            "and report it."
        )
    return [
        {
            "name": contestant.name,
            "coupling": problem.coupling,
            "device": problem.device,
            "states": states,
            "gradients": gradients,
            "tolerance": contestant.tolerance,
        }
    ]


def _few(problem: Problem) -> Problem:
    batch, steps = min(problem.batch, CHECKED_BATCH), min(problem.steps, CHECKED_STEPS)
    return replace(problem, batch=batch, steps=steps)


def _free(gradient: Tensor, problem: Problem, leaf: Tensor) -> Tensor:
    """A gradient, zero where the leaf is zero by construction."""
    gradient = gradient.cpu()
    if leaf is problem.terms.L:
        return gradient * problem.coupled
    if problem.blocks == "diagonal" and gradient.ndim == 2 and leaf is not problem.terms.W_in:
        return gradient.diagonal()
    return gradient


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted; 0 where both are zero, as behind a unit that is off."""
    return float((found.cpu().double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def within_budget(
    timings: list[Timing], rounds: int, budget: float, first: str
) -> tuple[list[Timing], list[str]]:
    """What to time, and the names of those left out, so that the rounds take `budget` seconds.

    Left out are only contestants whose cost does not depend on the coupling, slowest first, and never
    for the first coupling.
    """
    total = rounds * sum(timing.warm_up for timing in timings)
    dropped: list[str] = []
    for slow in sorted(timings, key=lambda timing: -timing.warm_up):
        if not budget or total <= budget:
            break
        if slow.contestant.sparse or not slow.contestant.coupled or slow.coupling == first:
            continue
        total -= rounds * slow.warm_up
        timings = [timing for timing in timings if timing is not slow]
        dropped.append(f"{slow.contestant.name} {slow.kind} with {slow.coupling}")
    return timings, dropped


def fill_memories(timings: Sequence[Timing], track: Track = lambda sequence, stage: sequence) -> None:
    """Fill in the peaks of a CPU; those of a GPU are there since the warm-up."""
    here = [timing for timing in timings if timing.device == "cpu"]
    peaks = peak_memories([(timing.contestant.name, timing.problem, timing.kind) for timing in here])
    for timing in track(here, "measuring memory"):
        timing.peak_mb = next(peaks)


def rates_of(products: Sequence[Timing]) -> dict[str, dict[str, dict[str, float]]]:
    """Operations a second of the machine's products, by device and precision: median and largest."""
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for timing in products:
        if timing.seconds:
            rates.setdefault(timing.device, {})[timing.contestant.precision] = {
                "median": timing.operations / timing.median,
                "max": timing.operations / timing.minimum,
            }
    return rates


def row_of(timing: Timing, products: Sequence[Timing]) -> dict[str, Any]:
    """What was measured of one contestant; `share` is of the rate of products of its precision."""
    problem, operations = timing.problem, timing.operations
    rate = rates_of(products).get(timing.device, {}).get(timing.contestant.precision)
    return {
        "name": timing.contestant.name,
        "kind": timing.kind,
        "n": problem.n,
        "batch": problem.batch,
        "steps": problem.steps,
        "coupling": timing.coupling,
        "median_s": timing.median,
        "min_s": timing.minimum,
        "peak_mb": None if timing.peak_mb is None else round(timing.peak_mb, 3),
        "device": timing.device,
        "rounds": len(timing.seconds),
        "useful_operations": operations,
        "share": None if rate is None else operations / timing.median / rate["median"],
    }


def noise_of(timings: Sequence[Timing]) -> list[str]:
    """A sentence if the machine is too noisy to trust, by its products or by the contestants."""
    noisy = [timing for timing in timings if timing.seconds and timing.noise > NOISE]
    if not noisy:
        return []
    worst = max(noisy, key=lambda timing: timing.noise)
    return [
        f"this machine is too noisy to trust the medians: {len(noisy)} of {len(timings)} are more than "
        f"{NOISE} times their minimum, {worst.label} {worst.noise:.2f} times. Compare the minima, or "
        "run again when nothing else runs."
    ]


def faster_device(timings: Sequence[Timing]) -> dict[str, dict[str, Any]]:
    """By coupling, where forward and backward take least: our Euler on modules without zeros, in full
    precision."""
    comparable = [
        timing
        for timing in timings
        if timing.contestant.backend is not None
        and timing.contestant.blocks == "dense"
        and timing.contestant.precision == "float32"
        and timing.kind == "forward_backward"
    ]
    return {  # of one coupling, the fastest comes last and stays
        timing.coupling: {
            "device": timing.device,
            "name": timing.contestant.name,
            "median_s": timing.median,
        }
        for timing in sorted(comparable, key=lambda timing: -timing.median)
    }


def _notes(rounds: int, dropped: list[str], interrupted: bool) -> Iterator[str]:
    if rounds < ROUNDS:
        yield f"{rounds} rounds are fewer than {ROUNDS}: the medians say little. Use --rounds {ROUNDS}."
    if dropped:
        yield (
            f"not timed, to stay within the budget, for their cost does not depend on the coupling: "
            f"{', '.join(dropped)}. Use --budget 0 to time them too."
        )
    if interrupted:
        yield "interrupted: these are the rounds until then."
