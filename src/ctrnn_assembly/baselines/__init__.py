"""Networks to compare with, one paper a file; layers as `CTRNN` is one (`ctrnn_assembly.recurrent`).

No baseline carries a certificate: none enforces a condition that proves contraction.
"""

from ctrnn_assembly.baselines.antisymmetric import AntisymmetricRNN as AntisymmetricRNN
from ctrnn_assembly.baselines.lipschitz import LipschitzRNN as LipschitzRNN
from ctrnn_assembly.baselines.lstm import LSTM as LSTM
from ctrnn_assembly.baselines.vanilla import VanillaRNN as VanillaRNN
