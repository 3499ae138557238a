"""What a network does, measured: Jacobians, spectra, Lyapunov exponents, fixed points.

A diagnosis describes the states and runs it looked at; it can refute a certificate, never replace it.
Everything is computed in float64 on the CPU from the weights as they are. Where to read:

| file | what |
|---|---|
| `jacobian` | J of the field and of one solver step, as matrices and as products |
| `generalised` | F = Theta' J Theta'^-1 in the metric, local contraction rates |
| `eigen` | LAPACK for all eigenvalues, ARPACK for the leading ones |
| `spectrum` | spectra along a trajectory, of modules, weights and coupling |
| `lyapunov` | exponents of solver steps under an input, and of any flow |
| `benettin` | the QR method behind them |
| `fixed_points` | fixed points under a constant input, and their stability |
| `newton` | the root finding behind them |
| `gsc`, `effective_depth` | how gradients scale over layers or time, and which factors carry them |
"""

from ctrnn_assembly.diagnostics.benettin import Lyapunov as Lyapunov
from ctrnn_assembly.diagnostics.fixed_points import FixedPoints as FixedPoints
from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points as find_fixed_points
from ctrnn_assembly.diagnostics.generalised import generalised_jacobian as generalised_jacobian
from ctrnn_assembly.diagnostics.generalised import local_rates as local_rates
from ctrnn_assembly.diagnostics.jacobian import Jacobian as Jacobian
from ctrnn_assembly.diagnostics.jacobian import SplitMap as SplitMap
from ctrnn_assembly.diagnostics.jacobian import field_jacobian as field_jacobian
from ctrnn_assembly.diagnostics.jacobian import field_map as field_map
from ctrnn_assembly.diagnostics.jacobian import step_jacobian as step_jacobian
from ctrnn_assembly.diagnostics.jacobian import step_map as step_map
from ctrnn_assembly.diagnostics.lyapunov import flow_exponents as flow_exponents
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents as lyapunov_exponents
from ctrnn_assembly.diagnostics.spectrum import Spectrum as Spectrum
from ctrnn_assembly.diagnostics.spectrum import coupling_spectrum as coupling_spectrum
from ctrnn_assembly.diagnostics.spectrum import module_spectra as module_spectra
from ctrnn_assembly.diagnostics.spectrum import spectrum_along as spectrum_along
from ctrnn_assembly.diagnostics.spectrum import spectrum_at as spectrum_at
from ctrnn_assembly.diagnostics.spectrum import weight_spectra as weight_spectra
