"""What a network does, measured: Jacobians, spectra, Lyapunov exponents, fixed points, contraction.

A diagnosis can refute a certificate, never replace it. Everything is computed in float64 on the CPU.
Arguments come in one order: the net, as `linearise` knows it; the inputs u, None for none; states: x
where to look, x0 where to start, by default 0. dt and solver say which step, by default the net's own.
ConfigError, ShapeError and DataError refuse arguments that do not fit, SolverError a run that overflows.
"""

from ctrnn_assembly.diagnostics.contraction import measure_contraction as measure_contraction
from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points as find_fixed_points
from ctrnn_assembly.diagnostics.linearise import Behaviour as Behaviour
from ctrnn_assembly.diagnostics.linearise import behaviour as behaviour
from ctrnn_assembly.diagnostics.linearise import flow_jacobian as flow_jacobian
from ctrnn_assembly.diagnostics.linearise import step_jacobian as step_jacobian
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents as lyapunov_exponents
from ctrnn_assembly.diagnostics.spectrum import module_spectra as module_spectra
from ctrnn_assembly.diagnostics.spectrum import spectrum_along as spectrum_along
from ctrnn_assembly.diagnostics.spectrum import spectrum_at as spectrum_at
