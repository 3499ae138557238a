"""Proof files: what is certified, with all that a referee needs to check it by `verifier.py` alone."""

import json
import math
import os
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save

from ctrnn_assembly.certificates import verifier
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import Certificate
from ctrnn_assembly.certificates.rounding import BACK_OFFS
from ctrnn_assembly.certificates.steps import Weighed, multipliers, step_system
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms


@torch.no_grad()
def write_proof(file: Path, net: Any, certificate: Certificate, weights: Path) -> list[str]:
    """Write what is certified of a net, as JSON to `file`, and its matrices beside it as safetensors.

    The net is `Terms`, or a layer with `terms()`; `weights` is the file that holds its weights. Bounds
    are those that one inequality proves in the certificate's metric (see `verifier`), less sharp perhaps
    than its own, the best of several. Returns what the verifier says; a step that it cannot prove is
    left out.

    Raises: ContractionError, and leaves no file, if there is nothing that such a file can prove.
    """
    metric, step = certificate.metric.matrix, certificate.step
    if not certificate.certified or metric is None or certificate.claim or certificate.declared:
        raise ContractionError("a proof file is of one certified flow, not of a map, a stack or a set.")
    terms: Terms = net if isinstance(net, Terms) else net.terms()
    exact, metric = terms.double(), metric.mapped(lambda tensor: tensor.cpu().double())
    (arrays, runs), whole = matrices(exact, metric), Interconnection.of(exact, metric)
    claims = claimed(whole, arrays, runs, "flow", 0.0)
    if step is not None and step.certified and not step.lengths:
        claims += claimed(whole, arrays, runs, step.solver, step.dt)
    data, beside = save(arrays), file.with_suffix(".matrices.safetensors")
    about = {
        "kind": "proof",
        "version": 1,
        "claims": claims,
        "activations": runs,
        "dtype": str(terms.tau.dtype),
    }
    for name, path, content in (
        ("weights", os.path.relpath(weights, file.parent), weights.read_bytes()),
        ("matrices", beside.name, data),
    ):
        about[name] = {"file": path, "sha256": sha256(content).hexdigest()}
    text = json.dumps(about | {"sha256": (zeros := "0" * 64)}, indent=1)
    beside.write_bytes(data)
    file.write_text(text.replace(zeros, sha256(text.encode()).hexdigest()))
    try:
        return verifier.verify(file)
    except (verifier.RefusedError, ValueError) as error:
        file.unlink(), beside.unlink()
        raise ContractionError(f"the verifier does not accept this proof: {error}.") from None


def matrices(terms: Terms, metric: Metric) -> tuple[dict[str, Any], list[Any]]:
    """The arrays of a proof but for T, and its activations, each with the number of units in a row."""
    pre, post = ([phi for phi, k in one.runs for _ in range(k)] for one in (terms.pre, terms.post))
    inside = torch.tensor([phi.name == "identity" for phi in pre])
    phis = [q if within else p for p, q, within in zip(pre, post, inside, strict=True)]
    unknown = {phi.name for phi in phis} - verifier.SLOPES.keys()
    if unknown or terms.edges:
        raise ContractionError(f"no proof file is known of nonlinear edges, and of phi = {unknown}.")
    W, one = terms.weight(), torch.eye(terms.n).double()
    tensors = {
        "X": torch.where(inside, one, W),
        "Z": torch.where(inside[:, None], W, one),
        "L": 0 * W if terms.L is None else terms.L,
        "tau": terms.tau,
        "theta": metric.scaled(terms.tau.sqrt()).theta(),
    }
    runs = [[name, len([*run])] for name, run in groupby(phi.name for phi in phis)]
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, runs


def claimed(whole: Interconnection, arrays: Any, runs: Any, solver: str, dt: float) -> list[Any]:
    """The claim of the best bound that is found, its T put into the arrays; none if none is proven."""
    system, T = step_system(whole, solver if dt else "euler", dt), whole.system[1]
    T = max(T, multipliers(system, T, dt), key=lambda T: Weighed.of(system, T).mu(dt))
    best = Weighed.of(system, T).mu(dt)
    arrays[f"T {solver}"] = T.numpy()
    for mu in (best - share * abs(best) for share in BACK_OFFS if 0 < best < math.inf):
        bound = math.sqrt(max(1 - 2 * dt * mu, 1e-16)) if dt else mu
        if (bound < 1 or not dt) and verifier.proves(arrays, runs, solver, dt, bound):
            return [{"solver": solver, "dt": dt, "bound": bound}]
    return []
