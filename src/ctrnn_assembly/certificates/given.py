"""Matrices that a user has, measured or trained elsewhere, as the `Terms` that certificates read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly import activations
from ctrnn_assembly.certificates.modules import modules_of
from ctrnn_assembly.certificates.result import Certificate
from ctrnn_assembly.certificates.rounding import UNIT
from ctrnn_assembly.errors import DataError, ShapeError, check_known, check_within, refusing
from ctrnn_assembly.terms import Terms, Uncertainty

Place = Literal["outside", "inside"]
SUFFIXES = (".npz", ".npy", ".mat", ".csv")


def terms_of(
    W: Any, L: Any = None, *, tau: Any = 1.0, activation: Any = "tanh", place: Place = "outside"
) -> Terms:
    """tau x' = -x + W phi(x) + L x + u, or phi(W x + u) + L x if phi is `inside`.

    W is (n, n), or blocks, (p, k, k) or a list of matrices; L (n, n), tau a number or (n,), positive;
    tensors or arrays. ShapeError, ConfigError or DataError for what is not so, real and finite.
    """
    check_known("place", place, ("outside", "inside"))
    blocks = _blocks(W, "W")
    n = sum(len(block) for block in blocks)
    coupling = None if L is None else _numbers(L, "L")
    if coupling is not None and coupling.shape != (n, n):
        raise ShapeError(f"L must be ({n}, {n}), as W has {n} units; got {tuple(coupling.shape)}.")
    times = _numbers(tau, "tau").flatten()
    if len(times) not in (1, n) or not bool((times > 0).all()):
        got = f"{len(times)} values, the smallest {float(times.min()) if len(times) else None}"
        raise ShapeError(f"tau must be 1 or {n} positive numbers; got {got}. Use np.repeat(tau, sizes).")
    maps = activations.around(activations.activation(activation), n, inside=place == "inside")
    return Terms(blocks, *maps, torch.zeros(n).double(), times.expand(n).clone(), coupling)


def uncertain(terms: Terms, by: Any) -> Terms:
    """The same terms, of which a certificate is to hold for all W + dW and L + dL within `by`.

    `by` is an `Uncertainty` with W in the form of W; or a number, the radius around W and, if there is
    one, around L; or half-widths in the form of W.
    """
    if not isinstance(by, Uncertainty):
        by = Uncertainty(by, by if np.ndim(by) == 0 and terms.L is not None else 0.0)
    each = by.W if isinstance(by.W, tuple) else _blocks(by.W, "uncertainty") if _is_array(by.W) else None
    each = each or (by.W,) * len(terms.sizes)
    *parts, of_L = (_numbers(x, "uncertainty") if _is_array(x) else float(x) for x in (*each, by.L))
    wanted = [(k, k) for k in terms.sizes] + [(terms.n, terms.n)]
    shapes = [getattr(one, "shape", shape) for one, shape in zip((*parts, of_L), wanted, strict=False)]
    if len(parts) != len(terms.sizes) or shapes != wanted:
        must = f"half-widths must be {wanted[:-1][:4]} for W and {wanted[-1]} for L"
        got = [tuple(shape) for shape in shapes][:5]
        raise ShapeError(f"{must}; got {got}. Or give a number, the radius of a ball.")
    for one in (*parts, of_L):
        for end in torch.as_tensor(one).aminmax():
            check_within("[0, inf)", uncertainty=float(end))
    return replace(terms, within=Uncertainty(tuple(parts), of_L))


def input_gain(terms: Terms, certificate: Certificate) -> float:
    """sup |x - x~| <= gain sup |u - u~| over time, from equal states: THEORY section 14; or infinite."""
    if not certificate.certified or certificate.metric.matrix is None:
        return np.inf
    modules = modules_of(terms, certificate.metric.matrix)
    enters = max(m.balance.left_norm * (m.phi.g if m.inside else 1.0) for m in modules)
    leaves = max(m.balance.right_norm for m in modules)
    return enters * leaves / certificate.rate * (1 + 4 * UNIT)


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) or np.ndim(value) > 0


def _blocks(W: Any, name: str) -> tuple[Tensor, ...]:
    """Square matrices, from one, from (p, k, k), or from a list of them."""
    several = isinstance(W, list | tuple) and len(W) > 0 and all(np.ndim(one) == 2 for one in W)
    parts = tuple(_numbers(one, name) for one in W) if several else (_numbers(W, name),)
    if len(parts) == 1 and parts[0].ndim == 3:
        parts = tuple(parts[0])
    shapes = [tuple(one.shape) for one in parts]
    if not parts or any(len(s) != 2 or s[0] != s[1] or s[0] < 1 for s in shapes):
        raise ShapeError(f"{name} must be square, (n, n), (p, k, k) or a list; got {shapes[:4]}.")
    return parts


def _numbers(value: Any, name: str) -> Tensor:
    """A copy in float64 on the CPU."""
    with refusing(f"{name} is no array of numbers", "Give a tensor, or an array of numpy."):
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} must hold real numbers; got {array.dtype}. Store it as float64.")
    if not np.isfinite(array).all():
        at = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise DataError(f"{name} must be finite; got {array[at]} at index {at}. Use an intact copy.")
    return torch.from_numpy(array.astype(np.float64))


def read_matrices(file: Path) -> dict[str, Any]:
    """W, or its blocks W0, W1, ..., and L and tau where they are there; .npy and .csv have W alone.

    Nothing in a file, which somebody else may have written, is executed: pickles are refused.
    """
    kind = file.suffix.lower()
    if kind not in SUFFIXES or not file.is_file() or not file.stat().st_size:
        must = f"name a file that holds something and ends in {', '.join(SUFFIXES)}"
        raise DataError(f"--weights must {must}; got {str(file)!r}.")
    advice = "A .csv has numbers and commas alone; objects are never loaded; MATLAB: save(file, '-v7')."
    with refusing(f"{file} cannot be read as {kind}", advice):
        found = _stored(file, kind)
    blocks = [f"W{k}" for k in range(sum(name not in ("W", "L", "tau") for name in found))]
    for name in found:
        check_known(f"an array of {file}", name, ("W", *blocks, "L", "tau"))
    if ("W" in found) == bool(blocks):
        raise DataError(f"{file} must hold W, or blocks W0, W1, ...; got {', '.join(found) or 'none'}.")
    rest: dict[str, Any] = {name: found[name] for name in ("L", "tau") if name in found}
    return {"W": [found[name] for name in blocks] if blocks else found["W"], **rest}


def _stored(file: Path, kind: str) -> dict[str, Any]:
    if kind == ".csv":
        return {"W": np.loadtxt(file, delimiter=",", ndmin=2, comments=None, encoding="utf-8-sig")}
    if kind == ".mat":
        from scipy.io import loadmat

        stored: Mapping[str, Any] = loadmat(file)
        arrays = {name: one for name, one in stored.items() if not name.startswith("__")}
        return {name: one.toarray() if hasattr(one, "toarray") else one for name, one in arrays.items()}
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"W": loaded}
    with loaded:
        return dict(loaded)
