"""What a net does, and its derivative, whatever the net is made of.

A diagnosis reads `step(u, x)`, the state one sample later, and, for what is an ordinary differential
equation, `flow(u)`, x' as a function of x. `behaviour` finds both in

    a layer of this project         its `step`, `flow`, `terms` and `metric`
    a `Subnetwork`, `Assembly`      a field with a direct input, (batch, n)
    `Terms`                         a field, without a metric of its own
    nn.RNN, nn.GRU, nn.LSTM         any number of layers, or a cell; the state is packed, (batch, layers
                                    n), for an LSTM (batch, 2 layers n): every h, then every c
    a callable (u, h) -> h          of your own, on float64 tensors (batch, m) and (batch, n)
    `Behaviour(size, flow=...)`     of your own: flow(u) gives x -> x', (batch, n) both

Derivatives are taken by automatic differentiation, except where a net answers `terms()`: then the field
and every step of `SCHEMES` have the Jacobian J = A + C N, N = diag(post') W diag(pre') + sum_e K_e
diag(psi_e'), four times as fast. Nets are copied, in evaluation mode and without gradients of weights.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, check_within, unknown
from ctrnn_assembly.inputs import as_tensor, check_finite
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.schemes import ADAPTIVE, FIXED_STEP, SCHEMES, AffineMap, affine_step, repeated, times
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.terms import Terms

Map = Callable[[Tensor | None, Tensor], Tensor]  # u (batch, m), x (batch, n): to a step, or to x'


class Linearisation:
    """A differentiable map, which treats samples apart, at x (batch, n): its `value` and Jacobian J."""

    def __init__(self, f: Map, u: Tensor | None, x: Tensor) -> None:
        self._f, self._u, self._x = f, u, x.detach()
        self.value = self._graph[1].detach()

    @cached_property
    def _graph(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = self._x.clone().requires_grad_()
            return x, _checked_value(self._f(self._u, x), x)

    @cached_property
    def _cotangent(self) -> tuple[Tensor, Tensor]:
        """w = 0 and J^T w, whose transposed derivative is J: thrice as fast as `torch.func.jvp`."""
        x, y = self._graph
        with torch.enable_grad():
            w = torch.zeros_like(y, requires_grad=True)
            return w, torch.autograd.grad(y, x, w, create_graph=True)[0]

    def product(self, V: Tensor) -> Tensor:
        """J v for each vector v of V, (k, batch, n)."""
        w, back = self._cotangent
        return vjp(back, w, V)

    def transposed(self, V: Tensor) -> Tensor:
        """J^T v for each vector v of V, (k, batch, n)."""
        x, y = self._graph
        return vjp(y, x, V)

    def matrix(self) -> Tensor:
        """J, (batch, n, n): 8 n^2 bytes a state, 32 MiB for n = 2048."""
        batch, n = self._x.shape
        eye = torch.eye(n, dtype=self._x.dtype)
        return self.transposed(eye[:, None].expand(n, batch, n)).transpose(0, 1)


class AffineLinearisation(Linearisation):
    """Of an `AffineMap` with one A and C, J in closed form, at a kink with the slope of `slope_at`."""

    def __init__(self, f: AffineMap, u: Tensor | None, x: Tensor) -> None:
        self._f, self._u, self._x, self._affine = f, u, x.detach(), f
        inner = f.terms.apply_weight(f.terms.pre(x)) + f.terms.inject(u)
        g = sum((edge.psi(x) @ edge.K.mT for edge in f.terms.edges), f.terms.post(inner))
        self.value = times(f.A, x) + times(f.C, g)
        self._pre, self._post = f.terms.pre.slope_at(x), f.terms.post.slope_at(inner)
        self._edges = [(edge.K, edge.psi.slope_at(x)) for edge in f.terms.edges]

    def product(self, V: Tensor) -> Tensor:
        out = self._affine.terms.apply_weight((V * self._pre).flatten(0, 1)).view(V.shape) * self._post
        for K, slope in self._edges:
            out = out + (V * slope) @ K.mT
        return times(self._affine.A, V) + times(self._affine.C, out)

    def matrix(self) -> Tensor:
        A, C = self._affine.A[0], self._affine.C[0]
        N = self._post[..., None] * self._affine.terms.weight() * self._pre[:, None]
        for K, slope in self._edges:
            N = N + K * slope[:, None]
        return (C[:, None] * N if C.ndim == 1 else C @ N) + (A if A.ndim == 2 else torch.diag(A))


def linearise(f: Map, u: Tensor | None, x: Tensor) -> Linearisation:
    return AffineLinearisation(f, u, x) if isinstance(f, AffineMap) else Linearisation(f, u, x)


def linearise_along(f: Map, inputs: Iterable[Tensor | None], x: Tensor) -> Iterator[Linearisation]:
    """The steps x <- f(u, x) under one input after another, each linearised where it starts."""
    for u in inputs:
        here = linearise(f, u, x)
        x = here.value
        yield here


@dataclass(frozen=True)
class Behaviour:
    """What a net does, on float64 tensors of the CPU.

    Attributes:
        size, sizes, input_size: widths of a state, its modules and an input; if not known () and None.
        step: (u, x) -> x one sample later, (batch, n), or None. Where m is known, u is never None.
        flow: u -> (x -> x'), or None for a map that is no differential equation.
        dt, solver, substeps: duration of a step, and the scheme of which it is so many steps, if any.
        sampled: whether the step is not one of the flow, as that of a stack that is not one field.
        terms, metric, x_0: the field's tensors, M of its theorem, and the initial state, (n,); or None.

    >>> net = Behaviour(1, flow=lambda u: lambda x: -(x**3))
    >>> flow_jacobian(net, None, torch.ones(1, 1)).item()
    -3.0
    """

    size: int
    step: Map | None = None
    flow: Callable[[Tensor | None], Callable[[Tensor], Tensor]] | None = None
    input_size: int | None = None
    dt: float | None = None
    solver: str | None = None
    sizes: tuple[int, ...] = ()
    terms: Terms | None = None
    metric: Metric | None = None
    substeps: int = 1
    x_0: Tensor | None = None
    sampled: bool = False

    @property
    def tau(self) -> Tensor:
        return torch.ones(self.size, dtype=torch.float64) if self.terms is None else self.terms.tau

    def flow_map(self) -> Map:
        flow, terms = self.flow, self.terms
        if flow is None:
            must = "the net must be a flow, x' = f(x, u)"
            raise ConfigError(f"{must}; got a map from one sample to the next. Ask for its step.")
        if terms is None:
            return lambda u, x: _checked_value(flow(u)(x), x)
        A = -1 / terms.tau
        A = A if terms.L is None else torch.diag(A) + terms.L / terms.tau[:, None]
        return AffineMap(terms, A[None], 1 / terms.tau[None])

    def own_map(self) -> Map:
        """x' of a flow, the step of a map."""
        return self.step_map() if self.flow is None else self.flow_map()

    def resolve(self, dt: float | None, solver: str | None) -> tuple[float, str | None]:
        """Duration of a step, 1 for a map without, and its scheme, Euler's for a flow without."""
        dt = self.dt if dt is None else dt
        if dt is None and self.flow is None:
            dt = 1.0
        check_within("(0, inf)", "Give one, 0.03 say.", dt=dt)
        return cast(float, dt), solver or self.solver or (None if self.flow is None else "euler")

    def step_map(self, dt: float | None = None, solver: str | None = None) -> Map:
        """One step: the net's own unless dt or solver is another; refused if there is no such step."""
        length, solver = self.resolve(dt, solver)
        is_own = solver == self.resolve(length, None)[1] and (self.flow is None or length == self.dt)
        if self.step is not None and is_own:
            step, m = self.step, self.input_size or 0
            return lambda u, x: step(x.new_zeros(len(x), m) if u is None and m else u, x)
        return repeated(self._single_step(length / self.substeps, solver), self.substeps)

    def _single_step(self, length: float, solver: str | None) -> Map:
        if self.terms is not None and solver in SCHEMES:
            return affine_step(SCHEMES[solver], self.terms, length)
        if self.flow is None:
            raise ConfigError(f"a map has its own step only; got solver={solver!r}. Leave it out.")
        if self.sampled:
            got, fix = f"{solver!r}, dt={length * self.substeps:g}", "Make the stack with them."
            raise ConfigError(f"a stack has its own step only; got {got}. {fix}")
        flow = self.flow_map()
        if solver == "euler":
            return lambda u, x: x + length * flow(u, x)
        if solver in FIXED_STEP:
            given: Any = {"t": [0.0, length], "solver": solver}
            return lambda u, x: solve(lambda t, z: flow(u, z), x, **given).last
        known = [*(SCHEMES if self.terms is not None else ["euler"]), *FIXED_STEP]
        raise unknown("solver", solver, known, "Steps of others have no Jacobian here.")


def behaviour(net: Any, *, size: int | None = None) -> Behaviour:
    """Of a net of the module's table, as its weights are now; size is that of a callable's state.

    >>> behaviour(torch.nn.LSTM(3, 8)).size  # h and c
    16
    """
    if isinstance(net, Behaviour):
        return net
    terms = net if isinstance(net, Terms) else _answer(net, "terms")
    if terms is None and isinstance(net, nn.Module):
        net = _copied(net)
    if isinstance(net, nn.RNNBase | nn.RNNCellBase):
        return of_torch(net)
    if terms is not None or hasattr(net, "state_size"):
        return _of_ours(net, terms)
    if not callable(net):
        must = "net must be a layer, a field, a recurrent net of torch or a callable (u, h) -> h"
        raise ConfigError(f"{must}; got {type(net).__name__}.")
    if size is None:
        raise ConfigError(
            f"{type(net).__name__} does not tell how wide its state is. Give the states to start from "
            "or behaviour(net, size=n), of a model its recurrent part, of a field CTRNN(m, f, size=n)."
        )
    return Behaviour(size, step=net, sizes=(size,))


def prepare(
    net: Any,
    u: Tensor | None,
    x: Tensor | None,
    inputs: str = "(batch, m)",
    states: str = "x (batch, n)",
    *,
    count: int | None = None,
    spread: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Behaviour, Tensor | None, Tensor]:
    """The net's behaviour, the inputs and the states (batch, n), in float64 on the CPU, checked.

    u must have the dimensions `inputs`, x the name and dimensions `states`. Without x there are `count`,
    by default one a sequence of u, from N(0, spread^2), or without spread the net's own initial state.
    """
    x = None if x is None else as_tensor(states.split()[0], x, torch.empty(0))
    known = behaviour(net, size=None if x is None else x.shape[-1])
    u = None if u is None else _checked_tensor(u, f"u {inputs}", known.input_size)
    if x is None:
        x = torch.zeros(count or (1 if u is None else len(u)), known.size, dtype=torch.float64)
        if spread:
            return known, u, x.normal_(0, spread, generator=generator)
        return known, u, x if known.x_0 is None else known.x_0.repeat(len(x), 1)
    x = _checked_tensor(x, states, known.size)
    x = x[None] if x.ndim == 1 else x
    if u is not None and inputs == "(batch, m)":
        if len(u) not in (1, len(x)):
            raise ShapeError(f"u must be (batch, m), batch {len(x)} or 1; got {tuple(u.shape)}.")
        u = u.expand(len(x), -1)
    return known, u, x


def _checked_tensor(t: Tensor, layout: str, width: int | None) -> Tensor:
    """The tensor in float64 on the CPU, if it has the layout, such as "u (time, m)"."""
    name, dimensions = layout.split(" ", 1)
    t = as_tensor(name, t, torch.empty(0))
    axes = dimensions.strip("(),").split(", ")
    if t.ndim != len(axes) or 0 in t.shape or t.shape[-1] != (width or t.shape[-1]):
        known = "" if width is None else f" with {axes[-1]} = {width}"
        raise ShapeError(f"{name} must be {dimensions}{known} and not empty; got {tuple(t.shape)}.")
    check_finite(t)
    return t.detach().to("cpu", torch.float64)


@torch.no_grad()
def trajectory(
    known: Behaviour,
    u: Tensor | None,
    x: Tensor,
    steps: int,
    *,
    dt: float,
    solver: str | None,
    rtol: float = 1e-9,
) -> Tensor:
    """The states after 0, ..., steps samples u (batch, steps, m), (batch, steps + 1, n); may overflow.

    Adaptive solvers, for a flow, have the tolerances rtol and rtol / 100, and see one sample a run.
    """
    flow = known.flow
    if flow is None or known.sampled or solver not in ADAPTIVE:
        step = known.step_map(dt, solver)
    else:
        settings: Any = {"solver": solver, "rtol": rtol, "atol": rtol / 100}

        def step(u: Tensor | None, x: Tensor) -> Tensor:
            f = flow(u)
            return solve(lambda t, z: f(z), x, [0.0, dt], **settings).last

    states = [x]
    for sample in [None] * steps if u is None else u.unbind(1)[:steps]:
        states.append(step(sample, states[-1]))
    return torch.stack(states, 1)


def step_jacobian(
    net: Any, u: Tensor | None, x: Tensor, *, dt: float | None = None, solver: str | None = None
) -> Tensor:
    """The Jacobian of one step by the state, (batch, n, n), at u (batch, m) or (1, m), x (batch, n).

    >>> step_jacobian(lambda u, x: x.sin(), None, torch.zeros(1, 2)).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    known, u, x = prepare(net, u, x)
    return linearise(known.step_map(dt, solver), u, x).matrix()


def flow_jacobian(net: Any, u: Tensor | None, x: Tensor) -> Tensor:
    """The Jacobian of x' by the state, per unit of time; otherwise as `step_jacobian`.

    >>> flow_jacobian(Subnetwork(Unconstrained(), 1, weight=torch.eye(1)), None, torch.zeros(1, 1))
    tensor([[[0.]]], dtype=torch.float64)
    """
    known, u, x = prepare(net, u, x)
    return linearise(known.flow_map(), u, x).matrix()


def vjp(y: Tensor, x: Tensor, V: Tensor) -> Tensor:
    """V dy/dx for each cotangent of V, (k, ...) like y: (k, ...) like x; 0 where y is a constant."""
    if not y.requires_grad:
        return V.new_zeros(len(V), *x.shape)
    options = {"retain_graph": True, "is_grads_batched": True, "materialize_grads": True}
    return torch.autograd.grad(y, x, V, **options)[0].detach()


def _checked_value(y: Tensor, x: Tensor) -> Tensor:
    if y.shape != x.shape:
        raise ShapeError(f"f must keep the shape {tuple(x.shape)} of x; got {tuple(y.shape)}.")
    if x.requires_grad and not y.requires_grad:
        must = "f must depend on x by differentiable operations"
        raise ConfigError(f"{must}; got a value without a gradient. Leave out detach and no_grad in f.")
    return y


def _answer(net: Any, name: str, *arguments: Any) -> Any:
    """What the net answers when asked, or None if it refuses or does not know."""
    try:
        return getattr(net, name)(*arguments) if hasattr(net, name) else None
    except ConfigError:
        return None


def _copied(net: nn.Module) -> Any:
    """In float64 on the CPU, in evaluation mode, without gradients of its weights."""
    net = deepcopy(net).to("cpu", torch.float64).eval().requires_grad_(False)
    _check_weights([*net.parameters(), *net.buffers()])
    return net


def _check_weights(tensors: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point()):
        raise DataError("the weights must be finite; got NaN or infinity. Load or build the net again.")


def _of_ours(net: Any, terms: Terms | None) -> Behaviour:
    """Of a field, its weights cast up from their own precision, or of a layer without terms."""
    metric, solver = _answer(net, "metric"), getattr(net, "solver", None)
    dt = getattr(net, "dt", getattr(net, "eps", None))  # eps: the step of a baseline's flow
    substeps, x_0 = getattr(net, "substeps", 1), getattr(net, "x_0", None)
    x_0 = None if x_0 is None else x_0.detach().double().cpu()
    if terms is None:
        n, flow = net.state_size, None if _answer(net, "flow", None) is None else net.flow
        layers = getattr(net, "layer_sizes", ()) or (n,)
        sizes = layers if metric is None else tuple(metric.sizes)
        sampled = not getattr(net, "one_field", True)
        own: Any = (dt, solver, sizes, None, metric, substeps, x_0, sampled)
        return Behaviour(n, net.step, flow, net.input_size, *own)
    terms = terms.detach_cpu().double()
    _check_weights(terms.tensors())
    step = None if solver in (None, *SCHEMES) else _copied(net).step
    m = terms.n if terms.W_in is None else terms.W_in.shape[1]
    own = (dt, solver, terms.sizes, terms, metric, substeps, x_0)
    return Behaviour(terms.n, step, lambda u: lambda x: terms(x, u), m, *own)


def of_torch(net: Any) -> Behaviour:
    """Of nn.RNN, nn.GRU, nn.LSTM and their cells, whose packed state is (batch, parts x layers x n)."""
    if getattr(net, "bidirectional", False) or getattr(net, "proj_size", 0):
        fix = "Where one reads backwards, take each direction alone; proj_size is not supported."
        raise ConfigError(f"net must have one state that goes forward in time; got {net}. {fix}")
    is_cell = isinstance(net, nn.RNNCellBase)
    parts = 2 if isinstance(net, nn.LSTM | nn.LSTMCell) else 1
    layers = 1 if is_cell else net.num_layers
    time = 1 if getattr(net, "batch_first", False) else 0  # the dimension

    def step(u: Any, x: Tensor) -> Tensor:
        state = rearrange(x, "b (parts layers n) -> parts layers b n", parts=parts, layers=layers)
        given: Any = tuple((state[:, 0] if is_cell else state).contiguous())
        given = given[0] if parts == 1 else given
        after = net(u, given) if is_cell else net(u.unsqueeze(time), given)[1]
        after = torch.stack((after,) if parts == 1 else after).view_as(state)
        return rearrange(after, "parts layers b n -> b (parts layers n)")

    sizes = (net.hidden_size,) * (parts * layers)
    return Behaviour(sum(sizes), step, input_size=net.input_size, sizes=sizes)
