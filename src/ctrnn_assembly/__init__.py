"""Continuous-time RNNs coupled into assemblies whose stability is proven.

The public names are imported when they are first used (PEP 562): a program that only reads
configurations, or prints a help text, need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctrnn_assembly.activations import ACTIVATIONS as ACTIVATIONS
    from ctrnn_assembly.activations import Activation as Activation
    from ctrnn_assembly.assembly import Assembly as Assembly
    from ctrnn_assembly.assembly import couple as couple
    from ctrnn_assembly.certificates import Certificate as Certificate
    from ctrnn_assembly.certificates import certify as certify
    from ctrnn_assembly.contracting import CONSTRAINTS as CONSTRAINTS
    from ctrnn_assembly.contracting import Absolute as Absolute
    from ctrnn_assembly.contracting import AdaDiagClip as AdaDiagClip
    from ctrnn_assembly.contracting import AdaDiagTanh as AdaDiagTanh
    from ctrnn_assembly.contracting import NegativeProduct as NegativeProduct
    from ctrnn_assembly.contracting import PublishedSparse as PublishedSparse
    from ctrnn_assembly.contracting import SingularValueBounded as SingularValueBounded
    from ctrnn_assembly.contracting import SparseAbsolute as SparseAbsolute
    from ctrnn_assembly.contracting import Symmetric as Symmetric
    from ctrnn_assembly.contracting import Triangular as Triangular
    from ctrnn_assembly.contracting import Unconstrained as Unconstrained
    from ctrnn_assembly.coupling import Feedback as Feedback
    from ctrnn_assembly.coupling import FreeCoupling as FreeCoupling
    from ctrnn_assembly.coupling import Hierarchy as Hierarchy
    from ctrnn_assembly.diagnostics.contraction import measure_contraction as measure_contraction
    from ctrnn_assembly.inputs import CubicHermite as CubicHermite
    from ctrnn_assembly.inputs import LinearInterpolation as LinearInterpolation
    from ctrnn_assembly.inputs import ZeroOrderHold as ZeroOrderHold
    from ctrnn_assembly.layers import CTRNN as CTRNN
    from ctrnn_assembly.layers import SequenceClassifier as SequenceClassifier
    from ctrnn_assembly.solvers import SOLVERS as SOLVERS
    from ctrnn_assembly.solvers import Solution as Solution
    from ctrnn_assembly.solvers import solve as solve
    from ctrnn_assembly.subnetwork import Subnetwork as Subnetwork

__version__ = "0.1.0"

PUBLIC = {
    "activations": ("ACTIVATIONS", "Activation"),
    "assembly": ("Assembly", "couple"),
    "certificates": ("Certificate", "certify"),
    "contracting": (
        "CONSTRAINTS",
        "Absolute",
        "AdaDiagClip",
        "AdaDiagTanh",
        "NegativeProduct",
        "PublishedSparse",
        "SingularValueBounded",
        "SparseAbsolute",
        "Symmetric",
        "Triangular",
        "Unconstrained",
    ),
    "coupling": ("Feedback", "FreeCoupling", "Hierarchy"),
    "diagnostics.contraction": ("measure_contraction",),
    "inputs": ("CubicHermite", "LinearInterpolation", "ZeroOrderHold"),
    "layers": ("CTRNN", "SequenceClassifier"),
    "solvers": ("SOLVERS", "Solution", "solve"),
    "subnetwork": ("Subnetwork",),
}
HOMES = {name: module for module, names in PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
