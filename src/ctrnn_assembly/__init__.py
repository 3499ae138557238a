"""Continuous-time RNNs coupled into assemblies whose stability is proven."""

from ctrnn_assembly.activations import ACTIVATIONS as ACTIVATIONS
from ctrnn_assembly.activations import Activation as Activation
from ctrnn_assembly.assembly import Assembly as Assembly
from ctrnn_assembly.assembly import Subnetwork as Subnetwork
from ctrnn_assembly.assembly import couple as couple
from ctrnn_assembly.contracting import CONSTRAINTS as CONSTRAINTS
from ctrnn_assembly.contracting import Absolute as Absolute
from ctrnn_assembly.contracting import AdaDiagClip as AdaDiagClip
from ctrnn_assembly.contracting import AdaDiagTanh as AdaDiagTanh
from ctrnn_assembly.contracting import Product as Product
from ctrnn_assembly.contracting import PublishedSparse as PublishedSparse
from ctrnn_assembly.contracting import Singular as Singular
from ctrnn_assembly.contracting import SparseAbsolute as SparseAbsolute
from ctrnn_assembly.contracting import Symmetric as Symmetric
from ctrnn_assembly.contracting import Triangular as Triangular
from ctrnn_assembly.contracting import Unconstrained as Unconstrained
from ctrnn_assembly.coupling import Feedback as Feedback
from ctrnn_assembly.coupling import FreeCoupling as FreeCoupling
from ctrnn_assembly.coupling import Hierarchy as Hierarchy

__version__ = "0.1.0"
