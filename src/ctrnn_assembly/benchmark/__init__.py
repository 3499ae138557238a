"""How fast the solvers are: the same work for every contestant, interleaved in one process.

| file | what |
|---|---|
| problem | one size, one field as leaf tensors, one input: what every contestant solves |
| contestants | the table of contestants, what each is compared with, and its useful operations |
| rivals | what others would use: plain loops, torchdiffeq, `nn.RNN`, `nn.LSTM`, torchdyno |
| timing | the rounds, in which everything is timed once, in a new order each |
| memory | the peak memory of one contestant, in a process of its own |
| measure | all of it, agreement before speed, as plain values |
| report | the rows of the printed table and the sentences below it |

The field is given as leaf tensors: what is timed is the solver. Building weights from parameters
(exponentials, metrics, couplings) is part of a training step as well; `ctrnn train --profile` shows it.
"""

from ctrnn_assembly.benchmark.contestants import CONTESTANTS as CONTESTANTS
from ctrnn_assembly.benchmark.contestants import Contestant as Contestant
from ctrnn_assembly.benchmark.measure import measure as measure
from ctrnn_assembly.benchmark.problem import Problem as Problem
