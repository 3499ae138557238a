"""Does a certificate ever say yes wrongly? Nets at the boundary of what contracts, and exact checks.

python experiments/no_false_yes.py [--nets 10000] [--seed 0] [--search none|fast] [--results FOLDER]

The nets are those of tests/boundary_nets.py, and the judge is tests/false_yes.py, by tests/exact.py,
which shares no code with the certificates. With a search for metrics all is judged in the one that the
certificate found. Ctrl-C keeps what was counted.
"""

import argparse
import hashlib
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keep import RESULTS, about, keep
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ctrnn_assembly import certificates
from ctrnn_assembly.certificates.certify import Search

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from boundary_nets import TOLERANCE, Label, classes, drawn
from false_yes import MARGIN, Verdict, judge

LARGE = 41  # one net in so many is large and attacked by search; prime, so that every class gets some
WORST_KEPT = 20
AXES = (*Label._fields, "place", "total")


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
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=10_000, help="nets at the boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", choices=("none", "fast"), default="none", help="for metrics")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Of the very certificates that are tried, before the run.
    source = [path.read_bytes() for path in sorted(Path(certificates.__file__).parent.glob("*.py"))]
    result = about(__file__, seed=arguments.seed)
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
