"""Does a certificate ever say yes wrongly? Nets at the boundary of what contracts, and exact checks.

python tests/false_yes.py [--nets 10000] [--seed 0] [--search none|fast] [--results FOLDER]

What is true is asked of exact.py, which shares no code with the certificates: exact over all slopes for
small nets; for large ones (16 to 64 units) a search, whose worst slopes then drive a linear time-varying
system, whose growth is measured. A false yes is a certified net that expands, or a claimed rate, factor
or largest dt better than the exact one by more than 1e-9 relative; or a net that contracts and that the
search for a witness, made without the certificate, refutes. With a search for metrics all is judged in
the one that the certificate found. Ctrl-C keeps what was counted.
"""

import argparse
import hashlib
import math
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.linalg import expm

from boundary_nets import TOLERANCE, Case, Label, classes, drawn, exact_rate
from ctrnn_assembly import certificates, witness
from ctrnn_assembly.certificates import Certificate, certify
from ctrnn_assembly.certificates.certify import Search
from ctrnn_assembly.training.provenance import provenance
from exact import Family

EXPANDS = 1e-12  # a factor so far above 1 expands: what float64 leaves uncertain is far below
MARGIN = 1e-3  # a no is false only if the exact rate, in units of 1 / tau, exceeds this
LARGE = 41  # one net in so many is large and attacked by search; prime, so that every class gets some
WORST_KEPT = 20
AXES = (*Label._fields, "place", "total")


class Verdict(NamedTuple):
    """What a case adds to every group that it is counted in, and how much its certificate left."""

    groups: dict[str, str]  # by axis
    counts: dict[str, int]
    ratio: float  # certified over exact factor, for small nets with a proven step; else NaN
    slack: tuple[float, float]  # of rate and factor; infinite for large nets, not known exactly
    offence: dict[str, Any]  # all about a certificate that is wrong; else empty


def refuted(
    rng: Generator, case: Case, claim: Certificate, told: witness.Verdicts, rate: float, factor: float
) -> list[str]:
    """What a certificate, or a witness, says wrongly, by the exact rate and factor."""
    net, solver, step = case.net, case.label.solver, claim.step
    assert step is not None
    bound = math.inf if step.contraction_factor is None else step.contraction_factor
    steps: list[float] = []
    if claim.certified and step.max_dt > 0:  # steps up to it must contract: tried there and below
        top = min(step.max_dt, 100 * net.slowest)
        steps = [top, top * rng.uniform(0.05, 1)]
    alone = [] if case.large else zip(net.modules(), claim.modules, strict=True)
    modules = ((m.rate, exact_rate(module, m.rate)) for module, m in alone)
    found = {
        "certified, but expands": claim.certified and rate <= 0,
        "rate too good": claim.rate > rate + TOLERANCE * max(1 / net.slowest, abs(rate)),
        "step certified, but expands": step.certified and factor >= 1 + EXPANDS,
        "step certified, but not the flow": step.certified and not claim.certified,
        "factor too good": bound < factor - TOLERANCE * max(1, factor),
        "refuted, but contracts": told.flow == "refuted" and rate > 0,
        "step refuted, but contracts": told.step == "refuted" and factor < 1,
        "module's rate too good": any(claimed > exact + off for claimed, (exact, off, _) in modules),
        "largest dt too large": any(net.field.factor(h, solver) >= 1 + EXPANDS for h in steps),
    }
    if case.large and claim.certified:
        found |= simulated_wrong(case, claim.rate, bound)
    return [name for name, is_wrong in found.items() if is_wrong]


def simulated_wrong(case: Case, rate: float, bound: float) -> dict[str, bool]:
    """A linear time-varying system driven by the slopes that grow most at every instant (greedy)."""
    flow = case.net.field.rate_family()
    step = case.net.field.step_family(case.dt, case.label.solver)
    y, short, faster = worst_direction(flow)[1], 0.02 * float(case.net.terms.tau.min()), False
    for _ in range(10):
        D = flow.signs(y, y)  # the exact maximiser of d|y|^2 / dt
        new = expm(short * flow.at(D)) @ y
        faster |= bool(np.linalg.norm(new) > math.exp(-rate * short) * (1 + TOLERANCE))
        y = new / np.linalg.norm(new)
    worst, y = worst_direction(step)
    more = False
    for _ in range(40 if math.isfinite(bound) else 0):
        D = worst
        for _ in range(4):
            D = step.signs(step.at(D) @ y, y)
        new = step.at(D) @ y
        more |= bool(np.linalg.norm(new) > bound * (1 + TOLERANCE))
        y = new / max(float(np.linalg.norm(new)), 1e-300)
    return {"flow grows faster than the rate allows": faster, "step grows more than the factor": more}


def worst_direction(family: Family) -> tuple[ndarray, ndarray]:
    """The worst slopes, and the direction that they stretch most."""
    _, D = family.worst()
    return D, family.top(family.at(D))[1]


def judge(rng: Generator, case: Case, seeds: list[int], search: Search) -> Verdict:
    """Compare a certificate with the exact check, for large nets with what the search found.

    For these 'contract' is what could not be refuted. `seeds` are what the net is drawn by.
    """
    net, solver, tau = case.net, case.label.solver, case.net.slowest
    claim = certify(net.terms, net.metric, dt=case.dt, solver=solver, search=search)
    if search != "none" and claim.metric.matrix is not None:
        net = replace(net, metric=claim.metric.matrix)
        case = replace(case, net=net)
    step = claim.step
    assert step is not None
    factor = net.field.factor(case.dt, solver)
    rate = exact_rate(net, claim.rate, case.large)[0]
    off = Certificate.refused("so that all is searched for", dt=case.dt, solver=solver)
    told = witness.judge(net.terms, off, inputs=0 if case.large else 1)
    wrong = refuted(rng, case, claim, told, rate, factor)
    bound = math.inf if step.contraction_factor is None else step.contraction_factor
    is_known = not case.large and factor > 0 and math.isfinite(bound)
    of_step = {w for w in wrong if "step" in w or "factor" in w or "dt" in w}
    contracts = rate * tau > MARGIN
    step_contracts = contracts and (1 - factor) / min(1.0, case.dt / tau) > MARGIN
    counts = {
        "nets": True,
        "contract": rate > 0,
        "expand": rate <= 0,
        "certified": claim.certified,
        "false_yes": len(wrong) > len(of_step),
        "no": contracts,
        "false_no": contracts and not claim.certified,
        "step_contract": factor < 1,
        "step_certified": step.certified,
        "step_false_yes": bool(of_step),
        "step_no": step_contracts,
        "step_false_no": step_contracts and not step.certified,
        "refuted": (told.flow == "refuted") + (told.step == "refuted"),
    }
    slack = (rate - claim.rate) / max(1 / tau, abs(rate)), bound - factor
    label, size = case.label._asdict(), "large" if case.large else "small"
    claims = {"claimed": claim.as_dict(), "wrong": wrong, "exact": {"rate": rate, "factor": factor}}
    where = {"drawn_from": seeds, "class": label, "place": case.place, "dt": case.dt}
    return Verdict(
        {**label, "place": f"{case.target} {case.place}, {size}", "total": "all"},
        {name: int(value) for name, value in counts.items()},
        bound / factor if is_known else math.nan,
        (math.inf, math.inf) if case.large else slack,
        {**claims, **where, "dtype": str(net.terms.tau.dtype)} if wrong else {},
    )


# Counting


def totals(verdicts: list[Verdict], axis: str) -> dict[str, Counter[str]]:
    """The counts of every group of one axis."""
    found: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.groups[axis], Counter()).update(verdict.counts)
    return dict(sorted(found.items()))


def facts(verdicts: list[Verdict]) -> dict[str, Any]:
    """What was counted, as plain values."""
    ratios = [verdict.ratio for verdict in verdicts if verdict.ratio > 0]
    return {
        "tolerance": TOLERANCE,
        "margin_of_a_false_no": MARGIN,
        "smallest_slack": [min((v.slack[k] for v in verdicts), default=math.inf) for k in (0, 1)],
        "certified_over_exact_factor": np.quantile(ratios, (0, 0.5, 0.9)).tolist() if ratios else [],
        **{f"by_{axis}": totals(verdicts, axis) for axis in AXES},
        "offenders": [verdict.offence for verdict in verdicts if verdict.offence][:WORST_KEPT],
    }


def hunt(nets: int, seed: int, search: Search, console: Console) -> tuple[list[Verdict], bool]:
    """Judge `nets` nets at the boundary (and those inside); whether it was interrupted."""
    labels, verdicts, wrong = classes(), list[Verdict](), 0
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("nets at the boundary", total=nets)
            for k in range(nets):
                rng, label = np.random.default_rng([seed, k]), labels[k % len(labels)]
                for case in drawn(rng, label, k % LARGE == LARGE - 1):
                    verdicts.append(judge(rng, case, [seed, k], search))
                    wrong += bool(verdicts[-1].offence)
                progress.update(task, advance=1, description=f"{wrong} false yes")
    except KeyboardInterrupt:
        return verdicts, True
    return verdicts, False


def report(verdicts: list[Verdict]) -> Table:
    """The totals by every axis of the classes, of places, and of all."""
    columns = ["class", "cases", "contract", "certified", "FALSE YES", "false no"]
    columns += ["steps contract", "certified", "FALSE YES", "false no"]
    table = Table(*columns, title="Certificates against exact checks; false no: share of those inside")
    for axis in AXES:
        for name, c in totals(verdicts, axis).items():
            cells = [str(c["nets"])]
            for step in ("", "step_"):
                cells += [str(c[step + key]) for key in ("contract", "certified", "false_yes")]
                no, of = c[f"{step}false_no"], c[f"{step}no"]
                cells.append(f"{100 * no / of:.1f} %" if of else "-")
            table.add_row(name, *cells)
        table.add_section()
    return table


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
    from keep import RESULTS, keep

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=10_000, help="nets at the boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", choices=("none", "fast"), default="none", help="for metrics")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Of the very certificates that are tried, before the run.
    source = [path.read_bytes() for path in sorted(Path(certificates.__file__).parent.glob("*.py"))]
    result = provenance(seed=arguments.seed)
    result |= {"certificates_sha256": hashlib.sha256(b"".join(source)).hexdigest()}
    console, started = Console(width=150), time.perf_counter()
    verdicts, stopped = hunt(arguments.nets, arguments.seed, arguments.search, console)
    seconds = round(time.perf_counter() - started, 1)
    console.print(report(verdicts))
    result |= {"nets": arguments.nets, "search": arguments.search, "interrupted": stopped}
    result |= {"seconds": seconds, **facts(verdicts)}
    wrong, (rate, factor) = len(result["offenders"]), result["smallest_slack"]
    c = result["by_total"].get("all", Counter())
    false = c["false_yes"] + c["step_false_yes"]
    told = c["certified"] + c["step_certified"] + c["refuted"]
    result["score"] = 10 * (told - false) - 150 * false
    console.print(f"{c['refuted']} refuted, each by a witness that replays, of flows and steps")
    console.print(f"score {result['score']}: +10 for each verdict that is right, -150 for a wrong one")
    console.print(f"{wrong} wrong; smallest slack: rate {rate:.2e}, factor {factor:.2e}")
    ratios = result["certified_over_exact_factor"]
    console.print(f"certified over exact factor: least, median, 90 %: {ratios}; {seconds:.0f} s")
    print(keep("no-false-yes", result, arguments.results))
    sys.exit(1 if wrong else 0)
