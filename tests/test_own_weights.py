"""A set of weights of the user's own: ten lines, by torch's convention too; mistakes are told early."""

import pytest
import torch
from torch import Tensor

from ctrnn_assembly import CTRNN, Contracting, Subnetwork
from ctrnn_assembly.errors import ContractionError


class Bounded(Contracting):
    """||W||_F < 1 / g, so that W is in the set of Theorem 5 with P = I."""

    theorem = "norm of W below 1 / g"

    def weight(self, E: Tensor) -> Tensor:
        return self.radius / self.phi.g * E / (1 + E.norm())

    def raw(self, W: Tensor) -> tuple[Tensor, ...]:
        V = self.phi.g / self.radius * W
        if V.norm() >= 1:
            raise self.outside("||W||_F < 1 / g", float(W.norm()), "Scale W down.")
        return (V / (1 - V.norm()),)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self(torch.randn(n, n, generator=generator))


class ByTorch(Bounded):
    """`raw` returns the one tensor."""

    def raw(self, W: Tensor) -> Tensor:  # type: ignore[override]
        return super().raw(W)[0]


class Overridden(Bounded):
    """`right_inverse` as torch documents it."""

    def right_inverse(self, W: Tensor) -> Tensor:  # type: ignore[override]
        return super().right_inverse(W)[0]


class Careless(Bounded):
    """`raw` takes weights outside the set."""

    def raw(self, W: Tensor) -> tuple[Tensor, ...]:
        V = self.phi.g / self.radius * W
        return (V / (1 - V.norm()),)


@pytest.mark.parametrize("kind", [Bounded, ByTorch, Overridden])
def test_a_weight_set_of_ones_own_is_trained_and_certified(kind):
    W = 0.1 * torch.randn(6, 6)
    module = Subnetwork(kind("relu", margin=0.1), 6, weight=W)
    torch.testing.assert_close(module.weight, W, rtol=0, atol=1e-12)
    layer = CTRNN(3, module, batch_first=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(5):
        loss = -layer(torch.randn(4, 10, 3))[0].square().sum()  # drives the weights outwards
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.allclose(module.weight, W, atol=1e-3)
    found = layer.certificate()
    assert found.certified
    assert found.rate >= module.rate >= 0.1 - 1e-9
    twin = Subnetwork(kind("relu", margin=0.1), 6)
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin.weight, module.weight)


def test_a_weight_outside_the_set_is_refused_at_once():
    with pytest.raises(ContractionError, match=r"needs \|\|W\|\|_F < 1 / g"):
        Subnetwork(Bounded(), 4, weight=torch.eye(4))
    with pytest.raises(ContractionError, match=r"weight\(\*raw\(W\)\) within .* correct Careless.raw"):
        Subnetwork(Careless(), 4, weight=torch.eye(4))
