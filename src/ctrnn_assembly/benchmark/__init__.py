"""How fast the solvers are: the same work for every contestant, interleaved in one process.

| file | what |
|---|---|
| problem | one size, one field as leaf tensors, one input: what every contestant solves |
| contestants | the table of contestants; `ours`, `baselines` and `torchdyno_core` build them |
| operations | the useful operations of a solve, to compare with the machine's own product rate |
| agreement | correctness before speed: the same states and gradients as the plain loop |
| interleave | the rounds, in which every entry is timed once, in a new order each |
| product | the machine's own matrix-product rate, timed in the same rounds |
| memory | the peak memory of one contestant, in a process of its own |
| measure | all of it, as plain values |

The field is given as leaf tensors: what is timed is the solver. Building weights from parameters
(exponentials, metrics, couplings) is part of a training step as well; `ctrnn train --profile` shows it.
"""

from ctrnn_assembly.benchmark.contestants import CONTESTANTS as CONTESTANTS
from ctrnn_assembly.benchmark.contestants import Contestant as Contestant
from ctrnn_assembly.benchmark.measure import Report as Report
from ctrnn_assembly.benchmark.measure import measure as measure
from ctrnn_assembly.benchmark.problem import Problem as Problem
from ctrnn_assembly.benchmark.problem import Size as Size
