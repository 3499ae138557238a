"""The whole measurement, as plain values: agreement, warm-up, rounds, memory, rows.

On the first device every contestant is timed, on further ones ours only, to say which is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ctrnn_assembly.benchmark.agreement import check_agreement, refusal
from ctrnn_assembly.benchmark.contestants import Contestant, check_choice, chosen
from ctrnn_assembly.benchmark.environment import environment
from ctrnn_assembly.benchmark.interleave import NOISE, Entry, interleave
from ctrnn_assembly.benchmark.memory import MEGABYTE, peak_memories
from ctrnn_assembly.benchmark.operations import KINDS, Kind
from ctrnn_assembly.benchmark.problem import Problem, Size, make_problem
from ctrnn_assembly.benchmark.product import dtypes, operations, product_entry
from ctrnn_assembly.benchmark.task import Task

ROUNDS = 7  # below which a median says little
BUDGET = 240.0  # seconds
PRODUCTS = {"full": "float32", "tf32": "tf32", "bf16": "bfloat16"}
Progress = Callable[[str, int, int], None]  # stage, done, of how many


@dataclass(frozen=True)
class Case:
    """A contestant on one problem and device."""

    contestant: Contestant
    problem: Problem
    task: Task

    @property
    def device(self) -> str:
        return self.problem.device.type

    @property
    def coupling(self) -> str:
        """As it is reported: what has no coupling counts once, beside the dense ones."""
        return self.problem.coupling if self.contestant.coupled else "all"


@dataclass
class Timed(Entry):
    """The entry of a case and kind."""

    case: Case = field(kw_only=True)
    kind: Kind = field(kw_only=True)
    warm_up: float = 0.0
    peak_mb: float | None = None


@dataclass(frozen=True)
class Report:
    """What was measured; `notes` are sentences for the reader."""

    rows: list[dict[str, Any]]
    facts: dict[str, Any]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, **self.facts, "notes": self.notes}


def measure(
    size: Size,
    couplings: Sequence[str],
    *,
    devices: Sequence[str] = ("cpu",),
    rounds: int = ROUNDS,
    backends: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    memory: bool = True,
    budget: float = BUDGET,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Check, warm up and time every contestant; Ctrl-C ends the rounds and keeps what was measured.

    Args:
        couplings: topologies by name; the first one is that of which a slow contestant is kept.
        devices: the first one for all contestants, further ones for ours.
        backends, only: of ours the backends to time, of all the names; empty for all.
        memory: whether to measure peak memory.
        budget: seconds for the rounds, see `within_budget`; 0 for no limit.

    Raises:
        ConfigError: for what cannot be run; SolverError: if ours differ from the plain loop.
    """
    cases, refused = _runnable(list(_cases(size, couplings, devices, backends, only)), size)
    agreement = _agreement(cases, size, progress)
    entries = [timed(case, kind) for case in cases for kind in KINDS]
    products = [product_entry(size, device, dtype) for device in devices for dtype in dtypes(device)]
    warm_up(entries, clock, progress)
    entries, dropped = within_budget(entries, rounds, budget, couplings[0])
    interrupted = not _rounds([*entries, *products], rounds, clock, progress)
    if memory and not interrupted:
        interrupted = not fill_memories([e for e in entries if e.device == "cpu"], size, progress)
    measured = [entry for entry in entries if entry.seconds]
    noise = noise_of(measured, products)
    rates = rates_of(products, size)
    facts = {
        "product_rate": rates,
        **environment(),
        "noisy": bool(noise),
        "interrupted": interrupted,
        "agreement": agreement,
        **asdict(size),
        "modules": size.modules,
        "dt": size.dt,
        "rounds": rounds,
        "devices": list(devices),
        "devices_present": ["cpu", *(["cuda"] if torch.cuda.is_available() else [])],
        "faster_device": faster_device(measured),
        "not_timed": dropped,
    }
    rows = [row_of(entry, rates) for entry in measured]
    return Report(rows, facts, [*refused, *_notes(rounds, dropped, interrupted), *noise])


def timed(case: Case, kind: Kind) -> Timed:
    """The entry of a case, with nothing timed yet."""
    key = (case.contestant.name, case.coupling, case.device, kind)
    return Timed(key, lambda: case.task.run(kind), case.device, case=case, kind=kind)


def _cases(
    size: Size,
    couplings: Sequence[str],
    devices: Sequence[str],
    backends: tuple[str, ...],
    only: tuple[str, ...],
) -> Iterator[Case]:
    check_choice(devices, backends, only)
    for device in devices:
        here = chosen(device, backends, only)
        for coupling in couplings:
            for contestant in here:
                if device != devices[0] and not contestant.is_ours:
                    continue
                if not contestant.coupled and coupling != couplings[0]:
                    continue
                problem = make_problem(size, coupling, contestant.blocks, device=device)
                if contestant.name.startswith("torchdyno") and not problem.pairs:
                    continue  # it has no assembly without a coupling
                yield Case(contestant, problem, contestant.build(problem))


def _runnable(cases: list[Case], size: Size) -> tuple[list[Case], list[str]]:
    """Without the backends that this machine or problem is not for, and a sentence on each of these."""
    kept, notes = [], []
    for case in cases:
        if case.contestant.backend is None:
            reason = None
        else:
            reason = refusal(case.contestant, size, case.problem.coupling, case.device)
        if reason is None:
            kept.append(case)
        else:
            notes.append(f"{case.contestant.name} with {case.coupling} was left out: {reason}")
    return kept, notes


def _agreement(cases: list[Case], size: Size, progress: Progress) -> list[dict[str, Any]]:
    found = []
    for done, case in enumerate(cases):
        progress("checking against the plain loop", done, len(cases))
        found += check_agreement([case.contestant], size, case.problem.coupling, case.device)
    return found


def warm_up(entries: list[Timed], clock: Callable[[], float], progress: Progress) -> None:
    """One run each; on a GPU, its peak memory, buffers that a backend keeps included."""
    for done, entry in enumerate(entries):
        progress("warming up", done, len(entries))
        if entry.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            entry.warm_up = entry.time(clock)
            entry.peak_mb = (torch.cuda.max_memory_allocated() - before) / MEGABYTE
        else:
            entry.warm_up = entry.time(clock)


def within_budget(
    entries: list[Timed], rounds: int, budget: float, first: str
) -> tuple[list[Timed], list[str]]:
    """The entries to time, and the names of those left out, so that the rounds take `budget` seconds.

    Left out are only contestants whose cost does not depend on the coupling, slowest first, and never
    for the first coupling.
    """
    total = rounds * sum(entry.warm_up for entry in entries)
    dropped: list[str] = []
    for slow in sorted(entries, key=lambda entry: -entry.warm_up):
        if not budget or total <= budget:
            break
        contestant = slow.case.contestant
        if contestant.sparse or not contestant.coupled or slow.case.coupling == first:
            continue
        total -= rounds * slow.warm_up
        entries = [entry for entry in entries if entry is not slow]
        dropped.append(f"{contestant.name} {slow.kind} with {slow.case.coupling}")
    return entries, dropped


def _rounds(
    entries: Sequence[Entry], rounds: int, clock: Callable[[], float], progress: Progress
) -> bool:
    """Whether all rounds were completed."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress("timing", done, rounds * len(entries))

    try:
        interleave(entries, rounds, clock=clock, done=count)
    except KeyboardInterrupt:
        return False
    return True


def fill_memories(entries: list[Timed], size: Size, progress: Progress) -> bool:
    """Fill in the peaks of a CPU; whether all were measured."""
    jobs = [(e.case.contestant.name, e.case.problem.coupling, e.kind) for e in entries]
    try:
        peaks = peak_memories(size, jobs, torch.get_num_threads())
        for done, (entry, peak) in enumerate(zip(entries, peaks, strict=True)):
            entry.peak_mb = peak
            progress("measuring memory", done + 1, len(entries))
    except KeyboardInterrupt:
        return False
    return True


def rates_of(products: Sequence[Entry], size: Size) -> dict[str, dict[str, dict[str, float]]]:
    """Operations a second of the machine's products, by device and dtype: median and largest."""
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for entry in products:
        if entry.seconds:
            _, dtype, device = entry.key
            rates.setdefault(device, {})[dtype] = {
                "median": operations(size) / entry.median,
                "max": operations(size) / entry.minimum,
            }
    return rates


def row_of(entry: Timed, rates: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    case, size = entry.case, entry.case.problem.size
    useful = case.contestant.operations(case.problem, entry.kind)
    rate = rates.get(case.device, {}).get(PRODUCTS[case.contestant.products])
    return {
        "name": case.contestant.name,
        "kind": entry.kind,
        "n": size.n,
        "batch": size.batch,
        "steps": size.steps,
        "coupling": case.coupling,
        "median_s": entry.median,
        "min_s": entry.minimum,
        "peak_mb": None if entry.peak_mb is None else round(entry.peak_mb, 3),
        "device": case.device,
        "rounds": len(entry.seconds),
        "useful_operations": useful,
        "share": None if rate is None else useful / entry.median / rate["median"],
    }


def noise_of(entries: Sequence[Entry], products: Sequence[Entry]) -> list[str]:
    """A sentence if the machine is too noisy to trust, by its products or by the contestants."""
    noisy = [entry for entry in (*products, *entries) if entry.seconds and entry.noise > NOISE]
    if not noisy:
        return []
    worst = max(noisy, key=lambda entry: entry.noise)
    name = " ".join(worst.key)
    return [
        f"this machine is too noisy to trust the medians: {len(noisy)} of "
        f"{len(entries) + len(products)} are more than {NOISE} times their minimum, {name} "
        f"{worst.noise:.2f} times. Compare the minima, or run again when nothing else runs."
    ]


def faster_device(entries: Sequence[Timed]) -> dict[str, dict[str, Any]]:
    """By coupling, where forward and backward take least: our Euler on modules without zeros, in full
    precision."""
    comparable = [
        entry
        for entry in entries
        if entry.case.contestant.backend is not None
        and entry.case.contestant.blocks == "dense"
        and entry.case.contestant.products == "full"
        and entry.kind == "forward_backward"
    ]
    return {  # of one coupling, the fastest comes last and stays
        entry.case.coupling: {
            "device": entry.device,
            "name": entry.case.contestant.name,
            "median_s": entry.median,
        }
        for entry in sorted(comparable, key=lambda entry: -entry.median)
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
