"""What a network does, measured: Jacobians, spectra, Lyapunov exponents, fixed points, contraction.

A diagnosis can refute a certificate, never replace it. Everything is computed in float64 on the CPU.
Arguments come in one order: the net, as `linearise` knows it; the inputs u, None for none; states: x
where to look, x0 where to start, by default 0. dt and solver say which step, by default the net's own.
ConfigError, ShapeError and DataError refuse arguments that do not fit, SolverError a run that overflows.
"""
