"""Certificates of single steps against the exact factor, by the vertices of the slopes.

python experiments/judge_steps.py [--nets 20000] [--seed 0] [--search none|fast] [--results FOLDER]

Nets of at most 8 slopes of every form, coupling and scheme, drawn by seed alone in metrics diagonal and
dense; the step is judged in the metric of its certificate. A certified step scores +10, one whose exact
factor is 1 or more, or below which the certified factor lies, -150.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from keep import RESULTS, about, keep
from numpy.random import Generator
from rich.console import Console
from rich.table import Table
from scipy.linalg import block_diag

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Edge, Terms

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from oracles import exact_field, matrix, sloped, terms_and_metric

SOLVERS = ("euler", "imex", "exponential-euler")
ACTS = [*(ACTIVATIONS[name] for name in ("tanh", "relu", "sigmoid")), sloped(0.0, 2.0), sloped(0.2, 0.8)]


def draw(rng: Generator) -> tuple[Terms, Metric, float, bool]:
    """A net in a metric, a step, and whether it has nonlinear one-way edges."""
    edged = bool(rng.random() < 0.25)
    sizes = (
        [(1, 1), (2, 1), (2, 2)][rng.integers(3)]
        if edged
        else [(2,), (3,), (4,), (2, 2), (3, 2)][rng.integers(5)]
    )
    blocks, thetas, acts = [], [], []
    for n in sizes:
        act, E = ACTS[rng.integers(len(ACTS))], rng.normal(size=(2, n, n))
        theta = np.exp(rng.choice([0, 0.4, 1.0]) * rng.normal(size=n))
        if n > 1 and rng.random() < 0.4:
            theta = np.diag(theta) @ (np.eye(n) + 0.4 * E[1])
        X = [E[0], E[0] - E[0].T, np.diag(np.diag(E[0]))][rng.integers(3)]
        X = X * rng.uniform(0.1, 1.1) / max(np.linalg.norm(X, 2), 1e-9) / act.g
        T = matrix(theta)
        blocks.append(np.linalg.solve(T, X @ T))
        thetas.append(theta)
        acts.append(act)
    T, n = block_diag(*map(matrix, thetas)), sum(sizes)
    K = rng.normal(size=(n, n)) * rng.choice([0.0, 0.5, 2.0, 5.0])
    L = np.linalg.solve(T, (K - K.T) @ T)
    edges = ()
    if edged:
        module = np.repeat(np.arange(len(sizes)), sizes)
        one_way = np.linalg.solve(
            T, rng.normal(size=(n, n)) * (module[:, None] > module) * rng.choice([0.2, 1.0]) @ T
        )
        edges = (Edge(torch.tensor(one_way), Elementwise(((ACTS[rng.integers(len(ACTS))], n),))),)
    tau = np.full(n, rng.choice([0.5, 1.0, 3.0]))
    form = "".join(rng.choice(["x", "r"], len(sizes)))
    net = terms_and_metric(blocks, thetas, acts, form, tau, L if L.any() else None, edges)
    return *net, float(tau[0] * 10 ** rng.uniform(-2, 0.5)), edged


def judge(rng: Generator, search: str) -> tuple[list[str], Counter[str], float]:
    """Groups, counts, and the certified over the exact factor of one draw."""
    solver = SOLVERS[rng.integers(3)]
    terms, metric, dt, edged = draw(rng)
    claim = certify(terms, metric, dt=dt, solver=solver, search=search)
    step, given = claim.step, exact_field(terms, metric)
    exact = given.factor(dt, solver)
    assert step is not None
    judged = given if claim.metric.matrix is None else exact_field(terms, claim.metric.matrix)
    there, q = judged.factor(dt, solver), step.contraction_factor
    wrong = (step.certified and there >= 1 + 1e-12) or (q is not None and q < there * (1 - 1e-10))
    counts = Counter(
        steps=1, contract=exact < 1 and given.rate() > 1e-6, certified=step.certified, false_yes=wrong
    )
    counts["score"] = 10 * step.certified - 160 * wrong
    kind = "edges" if edged else "diagonal metric" if metric.is_diagonal else "dense metric"
    return [solver, kind, "all"], counts, q / there if q is not None else np.inf


def main() -> None:
    """Judge, print the table, keep the counts; the exit status is 1 for a false yes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", choices=("none", "fast"), default="none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result, started = about(__file__, seed=arguments.seed), time.perf_counter()
    groups: dict[str, Counter[str]] = {}
    ratios = []
    for k in range(arguments.nets):
        names, counts, ratio = judge(np.random.default_rng([arguments.seed, k]), arguments.search)
        for name in names:
            groups.setdefault(name, Counter()).update(counts)
        ratios.append(ratio)
    table = Table("steps", "drawn", "contract as given", "certified", "share", "FALSE YES", "score")
    for name, c in sorted(groups.items()):
        share = f"{100 * c['certified'] / max(c['contract'], 1):.1f} %"
        table.add_row(
            name,
            *(str(c[key]) for key in ("steps", "contract", "certified")),
            share,
            str(c["false_yes"]),
            str(c["score"]),
        )
    Console(width=120).print(table)
    quantiles = dict(
        zip(
            ("least", "median", "90 %"),
            np.quantile(ratios, (0, 0.5, 0.9), method="lower").tolist(),
            strict=True,
        )
    )
    print("certified over exact factor:", {name: round(value, 6) for name, value in quantiles.items()})
    seconds = round(time.perf_counter() - started, 1)
    result |= {
        "nets": arguments.nets,
        "search": arguments.search,
        "seconds": seconds,
        "ratios": quantiles,
    }
    print(keep("judge-steps", result | {"groups": groups}, arguments.results))
    sys.exit(1 if groups["all"]["false_yes"] else 0)


if __name__ == "__main__":
    main()
