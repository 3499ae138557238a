"""Certificates: recomputed in float64 from plain tensors (W, L, M, tau, slopes, dt), able to fail.

Nothing here imports a parametrisation: a certificate sees the weights actually used, not the map that
made them. Where to read:

| file | what |
|---|---|
| `certify` | the whole way, from a field to its certificate |
| `rounding` | bounds that hold with float64 rounding accounted for: the trusted kernel |
| `checks` | what is refused before any proof |
| `lure` | a module and its metric; its Lur'e form |
| `modules` | Theorems 1 to 5 and the S-procedure: the rate of a module |
| `interconnection` | modules under a coupling: the rate of the whole |
| `steps` | the steps of the grid solvers |
| `search` | a metric where none is known |
| `gates` | state- and input-dependent time scales |
| `curves` | the factor of a step against its length |
| `result`, `wording` | what a certificate says, as values and in words |
"""

from ctrnn_assembly.certificates.certify import certify as certify
from ctrnn_assembly.certificates.certify import largest_coupling as largest_coupling
from ctrnn_assembly.certificates.result import Certificate as Certificate
from ctrnn_assembly.certificates.result import Module as Module
from ctrnn_assembly.certificates.result import StepCertificate as StepCertificate
from ctrnn_assembly.certificates.steps import STEP_PROOFS as STEP_PROOFS
