"""How fast the solvers are: the same work for every contestant, interleaved in one process.

| file | what |
|---|---|
| problem | one size, one field as leaf tensors, one input: what every contestant solves |
| contestants | ours and what others would use: a table, with tolerances and useful operations |
| measure | agreement, rounds of timings, memory, as plain values; what `ctrnn bench` prints of them |

The field is given as leaf tensors: what is timed is the solver. Building weights from parameters
(exponentials, metrics, couplings) is part of a training step as well; `ctrnn train --profile` shows it.
"""
