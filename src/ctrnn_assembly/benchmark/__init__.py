"""How fast the solvers are: the same work for every contestant, interleaved in one process.

| file | what |
|---|---|
| problem | one size, one field as leaf tensors, one input: what every contestant solves |
| contestants | ours and what others would use: a table, with tolerances and useful operations |
| timing | the rounds of timings, and peak memory |
| measure | all of it, agreement before speed, as plain values; and what `ctrnn bench` prints of them |

The field is given as leaf tensors: what is timed is the solver. Building weights from parameters
(exponentials, metrics, couplings) is part of a training step as well; `ctrnn train --profile` shows it.
"""

from ctrnn_assembly.benchmark.contestants import CONTESTANTS as CONTESTANTS
from ctrnn_assembly.benchmark.contestants import Contestant as Contestant
from ctrnn_assembly.benchmark.measure import measure as measure
from ctrnn_assembly.benchmark.problem import Problem as Problem
