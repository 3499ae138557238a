"""A field and a layer of the library in training loops of other people's: plain torch, and Lightning."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ctrnn_assembly import CTRNN, SingularValueBounded, Subnetwork, couple, solve

# --- plain torch: a field of one's own is fitted to data, and the solver is swapped


class VanDerPol(nn.Module):
    """q' = v, v' = mu (1 - q^2) v - q."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        q, v = x.unbind(-1)
        return torch.stack([v, self.mu * (1 - q**2) * v - q], -1)


def test_a_van_der_pol_field_is_fitted_by_any_solver():
    t, x0 = torch.linspace(0, 3, 16), torch.randn(16, 2)
    with torch.no_grad():
        data = solve(VanDerPol(1.5), x0, t, solver="dopri8", rtol=1e-10, atol=1e-12).x
    settings = {
        "rk4": {"solver": "rk4", "substeps": 2},
        "dopri5": {"solver": "dopri5"},
        "euler": {"solver": "euler", "substeps": 40},
    }
    field = VanDerPol(0.5)
    optimizer = torch.optim.LBFGS(field.parameters(), line_search_fn="strong_wolfe")

    def loss(**settings) -> Tensor:
        return (solve(field, x0, t, **settings).x - data).square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(**settings["rk4"])
        value.backward()
        return value

    optimizer.step(closure)
    assert abs(field.mu.item() - 1.5) < 1e-3
    with torch.no_grad():  # the swap: what was learnt is the field, not the steps of rk4
        rk4, dopri5, euler = (loss(**one).sqrt().item() for one in settings.values())
        coarse = loss(solver="euler").sqrt().item()
    assert max(rk4, dopri5) < 1e-3
    assert euler < 0.05 < 10 * euler < coarse  # of order one: 40 times finer steps


# --- Lightning: a certified layer in a module of its Trainer


class Sums(lightning.LightningModule):
    """Whether a noisy sequence had a positive mean."""

    def __init__(self) -> None:
        super().__init__()
        parts = [Subnetwork(SingularValueBounded("tanh"), 8) for _ in range(2)]
        self.rnn = CTRNN(1, couple(parts), batch_first=True, dt=0.1, solver="imex")
        self.head = nn.Linear(16, 1)

    def forward(self, u: Tensor) -> Tensor:
        return self.head(self.rnn.last(u))[:, 0]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def test_a_layer_is_trained_by_lightning_and_stays_certified(tmp_path):
    u = torch.randn(256, 20, 1) + torch.randn(256, 1, 1)
    y = (u.mean((1, 2)) > 0).to(u.dtype)
    net = Sums()
    before = net.rnn.field.terms().weight().detach().clone()
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(net, DataLoader(TensorDataset(u, y), batch_size=32, shuffle=True))
    net.eval()
    assert ((net(u) > 0) == (y > 0)).float().mean() > 0.9
    assert not torch.allclose(net.rnn.field.terms().weight(), before, atol=1e-3)
    assert net.rnn.certificate().step.certified
    again = Sums.load_from_checkpoint(trainer.checkpoint_callback.best_model_path or trainer.ckpt_path)
    torch.testing.assert_close(again(u), net(u))
