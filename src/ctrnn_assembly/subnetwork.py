"""One module: a contracting weight with its activation, form, time constant and bias.

tau x' = -x + W phi(x) + b + u(t)          (x-form, phi outside)
tau r' = -r + phi(W r + b + u(t))          (r-form, phi inside)
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ctrnn_assembly.activations import Activation, Elementwise, around
from ctrnn_assembly.contracting.interface import Contracting, Form, raw_tensors
from ctrnn_assembly.errors import ConfigError, ContractionError, CtrnnError, ShapeError
from ctrnn_assembly.fields import described, shapes
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.recurrent import is_plain, methods_of_its_own
from ctrnn_assembly.terms import Terms


class Exp(nn.Module):
    """Trained time constants tau = exp(raw), (n,), of n raw numbers, or of one for a dense metric."""

    def __init__(self, size: int, *, shared: bool) -> None:
        super().__init__()
        self.size, self.shared = size, shared

    def forward(self, raw: Tensor) -> Tensor:
        return raw.exp().expand(self.size).contiguous()

    def right_inverse(self, tau: Tensor) -> Tensor:
        return tau.log()[:1] if self.shared else tau.log()


class Field(nn.Module):
    """What `Subnetwork` and `Assembly` share: a vector field called f(t, x, u)."""

    leaves: Callable[[], list["Subnetwork"]]
    _terms: Callable[[], Terms]  # whatever a call of the parts may be
    slowest: Callable[[], Tensor | None]

    @property
    def rate(self) -> float | None:
        """The contraction rate guaranteed by construction, per unit of time; None if there is none."""
        slowest = self.slowest()
        parts = [part for part in self.modules() if isinstance(part, Field)]
        promised = [next(k for k in type(p).__mro__ if "slowest" in vars(k)) for p in parts]
        own = any(map(methods_of_its_own, parts, promised)) or bool(self.changed())
        if slowest is None or own or not all(bool(t.isfinite().all()) for t in self._terms().tensors()):
            return None
        with suppress(CtrnnError):
            for part in parts:
                if isinstance(part, Subnetwork):
                    part.check()
            return float(slowest.detach())
        return None

    def forward(self, t: Tensor | float, x: Tensor, u: Tensor | None = None) -> Tensor:
        """x' at x (batch, n) under the input u (batch, n); t is not used."""
        terms = self._terms()
        for name, value in (("x", x), ("u", u)):  # an input of the wrong width would broadcast
            if value is not None and (found := shapes(value))[1:] != (terms.n,):
                raise ShapeError(f"{name} must be one tensor (batch, {terms.n}); got {found}.")
        return terms(x, u)

    def terms(self) -> Terms:
        """The tensors of the field, for one solve; ConfigError if a part's call is not what they say."""
        if changed := self.changed():
            raise ConfigError(
                f"solvers read the tensors of a field, and do not call it; got {changed} with hooks, a "
                "pruned tensor or a forward of its own. Hook the layer, and prune weights and couplings."
            )
        return self._terms()

    def changed(self) -> str:
        """The class of a part, at any depth, whose call is not what `terms` say; or an empty string."""
        parts = (part for part in self.modules() if isinstance(part, Field))
        return next((type(part).__name__ for part in parts if not is_plain(part, Field)), "")

    @torch.no_grad()
    def project_(self) -> None:
        """Put raw tensors back where they have a gradient (AdaDiag clip)."""
        for leaf in self.leaves():
            if (project := getattr(leaf.constraint, "project_", None)) is not None:
                project(*raw_tensors(leaf))


class Subnetwork(Field):
    """One module: n units with a weight from a set of contracting weights.

    Args:
        constraint: the set (`ctrnn_assembly.contracting`), which also names phi.
        form: "x" for phi outside, "r" for phi inside.
        tau: time constant, a number, or (n,) where the metric is diagonal; > 0, any unit of time.
        train_tau: whether tau is trained from there on, by its logarithm; what is proven follows it.
        bias: whether to train a bias b.
        weight: an initial W of the set, (n, n); by default a sample. On the meta device none is drawn:
            `to_empty` and `load_state_dict`, or the latter with assign=True, fill the module.

    Guarantee: contraction at rate >= `rate` in the metric diag(tau) M, whatever training does. `rate` is
    None for the unconstrained controls, for weights rounded to half precision, under hooks and a further
    parametrisation of the weight; `certify` measures the weights that are used.

    >>> net = Subnetwork(SingularValueBounded("relu"), 8, tau=2.0)
    >>> net.rate, certify(net).certified
    (0.005, True)
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        constraint: Contracting,
        size: int,
        *,
        form: Form = "x",
        tau: float | Tensor = 1.0,
        train_tau: bool = False,
        bias: bool = True,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(constraint, Contracting):
            got, fix = f"{constraint!r:.60}", "Subnetwork(SingularValueBounded('tanh'), 16), for example"
            raise ConfigError(f"constraint must be a Contracting set of weights; got {got}. Use {fix}.")
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"size must be a whole number of units >= 1; got {size!r}. Use size=16.")
        if form not in ("x", "r"):
            raise ConfigError(f"form must be 'x' (phi outside) or 'r' (phi inside); got {form!r}.")
        self.size, self.form, self.train_tau = size, form, train_tau
        W = torch.empty(size, size) if weight is None else weight
        if weight is None and not W.is_meta:
            W = constraint.sample(size, generator)
        if shapes(W) != (size, size) or not W.is_floating_point():
            must = f"weight must be a floating-point tensor ({size}, {size})"
            raise ShapeError(f"{must}; got {described(W)}. Use torch.as_tensor(W).float().")
        self.weight = nn.Buffer(W) if constraint.frozen else nn.Parameter(W)
        parametrize.register_parametrization(self, "weight", constraint)
        zeros = W.new_zeros(size)
        self.bias = nn.Parameter(zeros) if bias else nn.Buffer(zeros, persistent=False)
        value = self._checked_tau(tau, W)
        self.tau = nn.Parameter(value) if train_tau else nn.Buffer(value)
        if train_tau:
            shared = not self.metric().is_diagonal
            parametrize.register_parametrization(self, "tau", Exp(size, shared=shared))
        self.register_load_state_dict_post_hook(Subnetwork.check)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled under its own class: that which a parametrisation makes can be found nowhere."""
        kind = parametrize.type_before_parametrizations(self)
        return object.__new__, (kind,), self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_modules": {}})
        for name in state["_modules"]["parametrizations"]:  # a class with these properties is made anew
            self.register_buffer(name, torch.empty(0))
            parametrize.register_parametrization(self, name, nn.Identity(), unsafe=True)
        self._modules = state["_modules"]

    def leaves(self) -> list[Self]:
        return [self]

    @property
    def constraint(self) -> Contracting:
        return self.parametrizations["weight"][0]  # type: ignore[index,return-value]

    @property
    def is_as_made(self) -> bool:
        """Whether the weight is what `constraint` makes of the raw tensors, and nothing else does."""
        made: Any = self.parametrizations["weight"]  # type: ignore[index]
        alone = len(made) == 1 and is_plain(made, parametrize.ParametrizationList)
        return alone and is_plain(made[0], Contracting)

    def slowest(self) -> Tensor | None:
        """The contraction rate guaranteed by construction, which a trained tau may change."""
        rate, exact = self.constraint.rate, torch.finfo(self.bias.dtype).bits >= 32
        if rate is None or not self.is_as_made or not exact:
            return None
        return rate / working_precision(self.tau.max())[0]

    def extra_repr(self) -> str:
        return f"{self.size}, form={self.form!r}, tau {'trained' if self.train_tau else 'fixed'}"

    def metric(self) -> Metric:
        """M, from the same raw tensors as the weight, in the form of the module."""
        raw = working_precision(*raw_tensors(self))
        return Metric((self.constraint.metric(*raw, form=self.form),))

    def _terms(self, weight: Tensor | None = None) -> Terms:
        diagonal = self.constraint.diagonal and (weight is not None or self.is_as_made)
        W = self.weight if weight is None else weight  # made of the raw tensors already
        return Terms((W,), *self.activations(), self.bias, self.tau, diagonal=diagonal)

    def kind(self) -> Any:
        """What it shares with modules that are read by one call for all; None if it is read alone."""
        made, rule = vars(self.constraint).items(), type(self.constraint)
        own = {name: value for name, value in made if value or value == 0}  # a patch, too
        plain = all(isinstance(value, int | float | str | Activation) for value in own.values())
        plain &= rule.__module__.startswith("ctrnn_assembly.") and type(self).__base__ is Subnetwork
        raw = ((x.shape, x.dtype, x.device) for x in raw_tensors(self))
        usual = plain and self.is_as_made and not {"metric", "_terms"} & vars(self).keys()
        return (rule, own, self.form, *raw) if usual else None

    def activations(self) -> tuple[Elementwise, Elementwise]:
        """The maps before and after W: phi and identity in the x-form, the reverse in the r-form."""
        return around(self.constraint.phi, self.size, inside=self.form == "r")

    def check(self, keys: object = None) -> None:
        """Refuse time constants and frozen weights that are not of the set; after loading, too."""
        if keys is not None and not isinstance(self.bias, nn.Parameter):
            self.bias = torch.zeros_like(self.tau)
        self._checked_tau(self.tau, self.weight)
        check = getattr(self.constraint, "check", None)
        if check is not None and not self.tau.is_meta:
            check(*raw_tensors(self))

    def _checked_tau(self, tau: float | Tensor, W: Tensor) -> Tensor:
        value = torch.as_tensor(tau, dtype=W.dtype, device=W.device)
        if value.ndim > 1 or (value.ndim == 1 and len(value) != self.size):
            raise ShapeError(f"tau must be a number or ({self.size},); got {tuple(value.shape)}.")
        value = value.expand(self.size).clone()
        if value.is_meta:  # comes, and is checked, with the file
            return value
        if not bool((value > 0).all() and torch.isfinite(value).all()):
            raise ConfigError(f"tau must be positive and finite; got {tau}.")
        if bool((value != value[0]).any()) and not self.metric().is_diagonal:
            raise ContractionError(
                f"{self.constraint.theorem} has a dense metric, which commutes with tau only if tau "
                "is one number per module; got different values. Use a scalar tau, or Theorem 1 or 5."
            )
        return value
