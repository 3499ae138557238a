"""How fast the solvers are: the same work for every contestant, interleaved in one process.

The field is given as leaf tensors: what is timed is the solver. Building weights from parameters
(exponentials, metrics, couplings) is part of a training step as well; `ctrnn train --profile` shows it.
"""
