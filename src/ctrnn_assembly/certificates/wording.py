"""A certificate in words: the verdict in one sentence, and the facts that it rests on.

Every number is rounded to the side that claims less: rates and certified dt down, factors and costs up.
"""

import math
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any

from ctrnn_assembly.certificates.result import WITHIN, Certificate, Meeting

ILL_CONDITIONED = 1e6
SOURCES = {
    "trained": "trained, with the best validation accuracy",
    "checkpoint": "of the last epoch: the run is not finished",
    "initial": "initial, before training",
    "none": "not read: a baseline",
    "given": "given matrices",
}


def verdict(certificate: Certificate) -> str:
    """One line: certified or not, why not, and what to change."""
    if not certificate.certified:
        return f"NOT certified: {'; '.join(certificate.reasons)}"
    proven = f"certified: contracts at a rate of at least {down(certificate.rate)}"
    if certificate.declared:
        proven += f" for {declared(certificate.declared)}"
    if certificate.claim:
        proven += f" for {certificate.claim}"
    step = certificate.step
    if step is None:
        return proven
    if certificate.of_map and step.contraction_factor is not None:
        how = f"contracts: {factor_words(step.contraction_factor, 1)} a step"
        return f"certified: {certificate.claim}, {how}; it is no flow"
    name = f"{step.solver} step of {step.dt:g}"
    if step.certified and step.lengths:
        count = "every length" if step.solver == "euler" else f"{len(step.lengths)} lengths"
        ends = f"{step.lengths[0]:g} to {step.lengths[-1]:g}"
        return f"{proven}, and so do {step.solver} steps of {count} from {ends}"
    if step.certified:
        return f"{proven}, and so does the {name}"
    return f"{proven} in continuous time, but NOT its {name}: {step.reason}"


def weights_rows(weights: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("weights", SOURCES[weights["kind"]])]
    if weights["file"] is not None:
        rows += [("file", weights["file"]), ("sha256", f"{weights['sha256'][:16]}...")]
    return rows


def fact_rows(certificate: Certificate) -> list[tuple[str, str]]:
    """Rate, metric, step and coupling; nothing of what is not known."""
    if not certificate.modules:
        return []
    where = "in the long run" if certificate.of_layers else "in the metric"
    unit = "step, -log of the factor" if certificate.of_map else "unit of time"
    rows = [("rate", f">= {down(certificate.rate)} per {unit}, {where}")]
    if certificate.certified:
        longest = f"<= {up(certificate.slowest_time_constant)}"
        rows.append(("time constant", f"{longest}: distances shrink by a factor e in this time"))
        if (sooner := certificate.crossing_time) > 0:
            rows.append(("Euclidean", f"distances are below their first values after {up(sooner)}"))
    if certificate.declared:
        rows.append(("for", declared(certificate.declared)))
    if certificate.claim:
        rows.append(("only for", certificate.claim))
    metric, condition = certificate.metric, certificate.metric.condition_number
    origin = "of the modules' theorems" if metric.origin == "given" else f"by {metric.origin}"
    growth = growth_words(condition)
    warning = "WARNING, of little use: " if condition > ILL_CONDITIONED else ""
    taken = "uncertainty costs" if certificate.claim == WITHIN else "rounding"
    rows += [
        (taken, f"{up(certificate.rounding, 2)}, taken off the rate already"),
        ("metric", f"{metric.kind}, {origin}"),
        ("its eigenvalues", f"{metric.smallest:.4g} to {metric.largest:.4g}"),
        ("condition number", f"{up(condition)}; {warning}{growth}" if condition > 1 else "1"),
    ]
    step = certificate.step
    if step is not None:
        bound = step.contraction_factor if step.certified else None
        words = step.reason if bound is None else factor_words(bound, step.substeps)
        rows.append((f"{step.solver} step, dt {step.dt:g}", words))
        if not certificate.of_map and (step.certified or step.max_dt > 0):
            longest = "every dt" if math.isinf(step.max_dt) else down(step.max_dt)
            longest += f", and {step.dt:g} by itself" if step.certified and step.dt > step.max_dt else ""
            rows.append(("largest certified dt", longest))
        if step.certified:
            rows.append(("rounding in steps", meeting_words(step.meeting)))
    if (cascade := certificate.cascade) is not None:
        of = "" if step is not None and step.certified else "of the exact solution, "
        alone = f"{cascade.slowest}, alone after {samples_words(cascade.memory)}"
        more = f"the proof of the whole takes {up(cascade.samples / cascade.memory, 3)} times as many"
        rows += [
            ("differences", f"{of}below a thousandth after {samples_words(cascade.samples)} samples"),
            ("slowest layer", f"{alone}; {more}"),
        ]
    coupling = certificate.coupling
    if not coupling.pairs and not coupling.edges:
        return [*rows, ("coupling", "none")]
    count = f"{len(coupling.pairs)} pair{'s' if len(coupling.pairs) != 1 else ''}"
    named = coupling.topology if coupling.topology == count else f"{coupling.topology}, {count}"
    rows += [
        ("coupling", f"{named}, norm {up(coupling.norm)} in the metric"),
        ("largest residual", f"{up(coupling.residual, 2)}; 0 is exact feedback"),
        ("cost of the coupling", f"takes at most {up(coupling.cost, 2)} off the rate"),
    ]
    if coupling.edges:
        rows.append(("nonlinear couplings", str(coupling.edges)))
    return rows


def growth_words(condition: float) -> str:
    """What a metric of this condition number leaves to Euclidean distances."""
    return f"Euclidean distances may grow {up(math.sqrt(condition), 3)}-fold before they shrink"


def meeting_words(meeting: Meeting | None) -> str:
    """Down to which distance rounded states meet."""
    if meeting is None:
        return "the factor is of exact arithmetic: no distance is known to which rounded states meet"
    floor, per_input = up(meeting.floor, 2), up(meeting.per_input, 2)
    return f"states meet down to {floor} + {per_input} U in {meeting.arithmetic}, for inputs |u| <= U"


def samples_words(samples: float) -> str:
    return f"{samples:,.0f}" if math.isfinite(samples) else "more than 10^12"


def factor_words(q: float, substeps: int) -> str:
    """The bound on the factor of a step and, where a sample takes several, on that of a sample."""
    several = f", and <= {factor(q**substeps)} in the {substeps} steps of a sample"
    return f"factor <= {factor(q)}{several if substeps > 1 else ''}"


def declared(names: Iterable[str]) -> str:
    """On what the user's word a certificate rests."""
    return f"slopes of {', '.join(map(repr, names))} that are declared, not proven"


def factor(bound: float) -> str:
    """A factor, rounded up, with so many digits that three of its distance from 1 are seen."""
    digits = 4 if bound <= 0.9 or bound >= 1 else 3 - math.floor(math.log10(1 - bound))
    return up(bound, digits)


def down(value: float, digits: int = 4, towards: str = ROUND_FLOOR) -> str:
    """A lower bound with few digits: rounded down."""
    if not math.isfinite(value):
        return str(value)
    context = Context(prec=digits, rounding=towards)
    return f"{float(context.create_decimal_from_float(value)):.{digits}g}"


def up(value: float, digits: int = 4) -> str:
    """An upper bound with few digits: rounded up."""
    return down(value, digits, ROUND_CEILING)
