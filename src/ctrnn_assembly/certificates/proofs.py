"""Proof files: what is certified, with all that a referee needs to check it by `verifier.py` alone."""

import json
import math
import os
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.numpy import save_file

from ctrnn_assembly.certificates import verifier
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.lmi import Weighed
from ctrnn_assembly.certificates.result import Certificate
from ctrnn_assembly.certificates.rounding import largest_proven
from ctrnn_assembly.certificates.steps import multipliers, step_system
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms


@one_thread()
def write_proof(file: Path, net: Any, certificate: Certificate, weights: Path) -> list[str]:
    """Write what is certified of a net, as JSON to `file`, and its matrices beside it as safetensors.

    The net is `Terms`, or has `terms()`. Bounds are what one inequality proves in the same metric (see
    `verifier`), perhaps less sharp; a step that it does not prove is left out. Returns what is proven; a
    ContractionError, and no file, if there is nothing that such a file can prove.
    """
    metric, step = certificate.metric.matrix, certificate.step
    if not certificate.certified or metric is None or certificate.claim or certificate.declared:
        raise ContractionError("a proof file is of one certified flow, not of a map, a stack or a set.")
    terms: Terms = net if isinstance(net, Terms) else net.terms()
    exact, metric = terms.double(), metric.mapped(lambda tensor: tensor.cpu().double())
    (arrays, names), whole = matrices(exact, metric), Interconnection.of(exact, metric)
    claims = claimed(whole, arrays, names, "flow", 0.0)
    if step is not None and step.certified and not step.lengths:
        claims += claimed(whole, arrays, names, step.solver, step.dt)
    beside, origin = file.with_suffix(".matrices.safetensors"), os.path.relpath(weights, file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    proof: dict[str, Any] = {"kind": "proof", "version": 1, "claims": claims}
    proof |= {"activations": " ".join(names), "dtype": str(terms.tau.dtype)}
    proof["weights"] = {"file": origin, "sha256": sha256(weights.read_bytes()).hexdigest()}
    with TemporaryDirectory(dir=file.parent) as made:  # what was there stays until this one holds
        new, numbers = Path(made, file.name), Path(made, beside.name)
        save_file(arrays, numbers)
        proof["matrices"] = {"file": beside.name, "sha256": sha256(numbers.read_bytes()).hexdigest()}
        text = json.dumps(proof | {"sha256": (zeros := "0" * 64)}, indent=1)
        new.write_text(text.replace(zeros, sha256(text.encode()).hexdigest()))
        try:
            said = verifier.verify(new, weights)
        except (verifier.RefusedError, ValueError) as error:
            raise ContractionError(f"the verifier does not accept this proof: {error}.") from None
        numbers.replace(beside)
        new.replace(file)
    return said


def matrices(terms: Terms, metric: Metric) -> tuple[dict[str, Any], list[str]]:
    """The arrays of a proof but for T, and the names of the activations, one for each unit."""
    pre, post = terms.pre.units, terms.post.units
    inside = torch.tensor([phi.name == "identity" for phi in pre])
    names = [q.name if within else p.name for p, q, within in zip(pre, post, inside, strict=True)]
    if terms.edges or not verifier.SLOPES.keys() >= {*names}:
        raise ContractionError(f"no proof file has nonlinear edges, or phi but {[*verifier.SLOPES]}.")
    W, one = terms.weight(), torch.eye(terms.n).double()
    tensors = {
        "X": torch.where(inside, one, W),
        "Z": torch.where(inside[:, None], W, one),
        "L": 0 * W if terms.L is None else terms.L,
        "tau": terms.tau,
        "theta": metric.scaled(terms.tau.sqrt()).theta(),
    }
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, names


@one_thread()
def are_of(proof: Any, arrays: Any, net: Any) -> bool:
    """Whether a proof and its arrays are of a net, `Terms` or with `terms()`, to the last bit."""
    terms = (net if isinstance(net, Terms) else net.terms()).detach_cpu().double()
    own, names = matrices(terms, Metric((Factor.diagonal(torch.zeros(terms.n)),)))
    same = (own[name].tolist() == arrays[name].tolist() for name in ("X", "Z", "L", "tau"))
    return names == proof["activations"].split() and all(same)


def claimed(whole: Interconnection, arrays: Any, names: Any, solver: str, dt: float) -> list[Any]:
    """The claim of the best bound that is found, its T put into the arrays; none if none is proven."""
    system, T = step_system(whole, solver if dt else "euler", dt), whole.system[1]
    T = max(T, multipliers(system, T, dt), key=lambda T: Weighed.of(system, T).mu(dt))
    arrays[f"T {solver}"] = T.numpy()
    claim: dict[str, Any] = {"solver": solver, "dt": dt}

    def proves(mu: float) -> bool:
        claim["bound"] = math.sqrt(max(1 - 2 * dt * mu, 1e-16)) if dt else mu
        return verifier.proves(arrays, names, **claim)

    return [claim] if largest_proven(Weighed.of(system, T).mu(dt), proves) else []
