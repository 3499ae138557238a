"""Sets of contracting weights, one theorem a file (4 with 1); g in conditions is the largest |slope|.

>>> [name for name, kind in CONSTRAINTS.items() if kind.monotone_only]  # phi must have slopes >= 0
['symmetric', 'product', 'firing-rate']
"""

from ctrnn_assembly.contracting.adadiag import AdaDiagClip, AdaDiagTanh
from ctrnn_assembly.contracting.interface import Contracting
from ctrnn_assembly.contracting.theorem1 import Absolute, SparseAbsolute, Triangular
from ctrnn_assembly.contracting.theorem2_symmetric import Symmetric
from ctrnn_assembly.contracting.theorem3_product import NegativeProduct
from ctrnn_assembly.contracting.theorem5_singular import SingularValueBounded
from ctrnn_assembly.contracting.theorem35_firing_rate import FiringRate
from ctrnn_assembly.contracting.unconstrained import PublishedSparse, Unconstrained

CONSTRAINTS: dict[str, type[Contracting]] = {
    "sparse-absolute": SparseAbsolute,
    "absolute": Absolute,
    "symmetric": Symmetric,
    "product": NegativeProduct,
    "triangular": Triangular,
    "singular": SingularValueBounded,
    "firing-rate": FiringRate,
    "adadiag-tanh": AdaDiagTanh,
    "adadiag-clip": AdaDiagClip,
    "unconstrained": Unconstrained,
    "published-sparse": PublishedSparse,
}
