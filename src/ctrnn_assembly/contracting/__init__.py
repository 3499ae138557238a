"""Sets of contracting weights, one theorem a file.

| name | class | condition (g = max slope) | metric |
|---|---|---|---|
| sparse-absolute | `SparseAbsolute` | rho(g abs W) < 1, frozen | diagonal |
| absolute | `Absolute` | rho(g abs W) < 1, trainable | diagonal |
| symmetric | `Symmetric` | W = W^T, g W < I | R^-2 |
| product | `NegativeProduct` | W = -P1 Q P2 | (P1 Q P1)^-1 |
| triangular | `Triangular` | triangular, g W_ii < 1 | diagonal |
| singular | `SingularValueBounded` | g^2 W^T P W < P | diagonal |
| adadiag-tanh, adadiag-clip | `AdaDiagTanh`, `AdaDiagClip` | diagonal, g abs w < 1 | I |
| unconstrained, published-sparse | `Unconstrained`, `PublishedSparse` | none | I, no guarantee |
"""

from ctrnn_assembly.contracting.adadiag import AdaDiagClip as AdaDiagClip
from ctrnn_assembly.contracting.adadiag import AdaDiagTanh as AdaDiagTanh
from ctrnn_assembly.contracting.interface import Contracting as Contracting
from ctrnn_assembly.contracting.interface import Form as Form
from ctrnn_assembly.contracting.interface import raw_tensors as raw_tensors
from ctrnn_assembly.contracting.theorem1_absolute import Absolute as Absolute
from ctrnn_assembly.contracting.theorem1_frozen import SparseAbsolute as SparseAbsolute
from ctrnn_assembly.contracting.theorem2_symmetric import Symmetric as Symmetric
from ctrnn_assembly.contracting.theorem3_product import NegativeProduct as NegativeProduct
from ctrnn_assembly.contracting.theorem4_triangular import Triangular as Triangular
from ctrnn_assembly.contracting.theorem5_singular import SingularValueBounded as SingularValueBounded
from ctrnn_assembly.contracting.unconstrained import PublishedSparse as PublishedSparse
from ctrnn_assembly.contracting.unconstrained import Unconstrained as Unconstrained

CONSTRAINTS: dict[str, type[Contracting]] = {
    "sparse-absolute": SparseAbsolute,
    "absolute": Absolute,
    "symmetric": Symmetric,
    "product": NegativeProduct,
    "triangular": Triangular,
    "singular": SingularValueBounded,
    "adadiag-tanh": AdaDiagTanh,
    "adadiag-clip": AdaDiagClip,
    "unconstrained": Unconstrained,
    "published-sparse": PublishedSparse,
}
