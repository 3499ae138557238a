"""The public names and where they are: read by type checkers, and by `__init__.py` when it runs."""

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
from ctrnn_assembly.training.run import Run as Run
from ctrnn_assembly.training.run import load_run as load_run

HOMES: dict[str, str]  # of each name: its module
__version__: str
