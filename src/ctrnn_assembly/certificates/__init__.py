"""Certificates: recomputed in float64 from plain tensors (W, L, M, tau, slopes, dt), able to fail.

Nothing here imports a parametrisation: a certificate sees the weights actually used, not the map that
made them. Read `certify` for the whole way from a field to its certificate: `search` guesses a metric,
`modules` proves the rate of a module, `interconnection` that of the whole and `steps` a step, all by
bounds of `rounding`, the trusted kernel.
"""

from ctrnn_assembly.certificates.certify import certify as certify
from ctrnn_assembly.certificates.result import Certificate as Certificate
from ctrnn_assembly.certificates.result import StepCertificate as StepCertificate
