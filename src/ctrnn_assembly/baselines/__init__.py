"""Networks to compare with, one paper a file, all called as `torch.nn.RNN` is.

    output, h_n = net(input, h_0=None, lengths=None)     every state, and the last one
    h           = net.last(input, lengths=None)          the last state only, (B, n)
    h           = net.step(u, h)                         one exact step

No baseline carries a certificate: none enforces a condition that proves contraction.
"""

from ctrnn_assembly.baselines.antisymmetric import AntisymmetricRNN as AntisymmetricRNN
from ctrnn_assembly.baselines.lipschitz import LipschitzRNN as LipschitzRNN
from ctrnn_assembly.baselines.lstm import LSTM as LSTM
from ctrnn_assembly.baselines.vanilla import VanillaRNN as VanillaRNN
