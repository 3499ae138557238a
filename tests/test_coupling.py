"""Couplings: eq. (3), time constants and hierarchies, by the vertices of all slopes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrnn_assembly.assembly import Assembly, couple
from ctrnn_assembly.contracting import (
    Absolute,
    AdaDiagClip,
    AdaDiagTanh,
    Contracting,
    NegativeProduct,
    PublishedSparse,
    SingularValueBounded,
    SparseAbsolute,
    Symmetric,
    Triangular,
    Unconstrained,
)
from ctrnn_assembly.coupling import BlockMatrix, Feedback, FreeCoupling, Hierarchy, hierarchy_scales
from ctrnn_assembly.errors import ConfigError, ContractionError, ShapeError
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.subnetwork import Subnetwork
from ctrnn_assembly.terms import Terms
from oracles import abscissa, array, assembly_rate, rates, worst_rate

SPARSE = {"density": 0.5, "magnitude": 1.0, "outside_set": "rescale"}


def stirred(rule: Contracting, size: int, **options: object) -> Subnetwork:
    """A module whose metric is not the identity: b and the factors moved off their start."""
    module = Subnetwork(rule, size, **options)
    with torch.no_grad():
        for raw in module.parametrizations.parameters():
            raw += 0.5 * torch.randn_like(raw)
        module.bias.normal_()
    return module


def zoo() -> list[Subnetwork]:
    """Every kind, both forms, mixed sizes and activations; 18 units."""
    return [
        stirred(SingularValueBounded("tanh"), 3),
        stirred(Symmetric("sigmoid"), 2, form="r"),
        stirred(Symmetric("relu"), 2, form="x"),
        stirred(NegativeProduct("relu"), 2, form="x"),
        stirred(NegativeProduct("tanh"), 2, form="r"),
        stirred(Absolute("gelu"), 1, form="r"),
        stirred(Triangular("selu"), 2),
        stirred(AdaDiagTanh("tanh"), 1),
        stirred(AdaDiagClip("relu"), 1, form="r"),
        stirred(SparseAbsolute("relu", **SPARSE), 2),
    ]


def skewness(M: np.ndarray, L: np.ndarray) -> float:
    return float(np.abs(M @ L + L.T @ M).max() / np.abs(M @ L).max())


def exact_rate(net: Assembly | Subnetwork, *, tau: bool = True) -> float:
    """The worst rate of the flattened field in diag(tau) M, over all slopes of phi and psi."""
    terms, leaves = net.terms(), net.leaves() if isinstance(net, Assembly) else [net]
    slopes = [
        leaf.constraint.phi.slope if not leaf.constraint.phi.monotone else (0.0, leaf.constraint.phi.g)
        for leaf in leaves
    ]
    M = array(net.metric().matrix())
    root = np.sqrt(array(net.tau)) if tau else np.ones(net.size)
    edge = terms.edges[0] if terms.edges else None
    return assembly_rate(
        [array(W) for W in terms.blocks],
        [leaf.form for leaf in leaves],
        slopes,
        root[:, None] * M * root,
        L=None if terms.L is None else array(terms.L),
        K=None if edge is None else array(edge.K),
        psi=(0.0, 1.0) if edge is None else edge.psi.runs[0][0].slope,
        tau=array(net.tau),
    )


@pytest.mark.parametrize("topology", ["all", "ring", "chain", "star", "random:7"])
def test_feedback_is_skew_in_the_metric_of_every_mixture(topology: str) -> None:
    net = couple(zoo(), topology, init_scale=5.0)
    M, L = array(net.metric().matrix()), array(net.terms().L)
    assert skewness(M, L) <= 1e-12
    assert np.abs(L + L.T).max() > 0.1  # in the identity it is not skew


@pytest.mark.parametrize("gain", [0.1, 30.0])
def test_feedback_costs_no_rate(gain: float) -> None:
    everything = zoo()
    for part in (everything[:3], everything[3:7], everything[5:]):
        net = couple(part, "all", init_scale=gain)
        # In floating point, skewness is lost by about eps ||K||.
        assert exact_rate(net) == pytest.approx(min(map(exact_rate, part)), abs=1e-9)
        assert exact_rate(net) >= net.rate == min(module.rate for module in part)


def test_feedback_is_equation_3() -> None:
    """L_ij = B_ij - M_i^-1 B_ji^T M_j for B_ij = Theta_i^-1 K_ij Theta_j (i < j), B_ji = 0."""
    modules = zoo()
    net = couple(modules, "random:12")
    metric = [module.metric() for module in modules]
    M = [array(m.matrix()) for m in metric]
    L = array(net.terms().L)
    sizes = [m.size for m in modules]
    at = np.concatenate([[0], np.cumsum(sizes)])
    values, used = array(net.coupling.K.values), 0
    coupled = set(net.coupling.pairs)
    for i in range(len(sizes)):
        for j in range(i, len(sizes)):
            ij = L[at[i] : at[i + 1], at[j] : at[j + 1]]
            ji = L[at[j] : at[j + 1], at[i] : at[i + 1]]
            if (i, j) not in coupled:
                assert not ij.any()
                assert not ji.any()
                continue
            K = values[used : used + sizes[i] * sizes[j]].reshape(sizes[i], sizes[j])
            used += K.size
            B = np.linalg.solve(array(metric[i].theta()), K @ array(metric[j].theta()))
            np.testing.assert_allclose(ij, B, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(
                ji, -np.linalg.solve(M[j], B.T @ M[i]), rtol=1e-9, atol=1e-9 * np.abs(B).max()
            )
    assert used == len(values)


def feedback_between(thetas: list[list[float]], B: list[list[float]]) -> np.ndarray:
    """L of Feedback between two diagonal metrics, whose K is chosen so that L_12 = B."""
    metrics = [Metric((Factor(torch.tensor(t), 1 / torch.tensor(t)),)) for t in thetas]
    coupling = Feedback([len(t) for t in thetas], [(0, 1)])
    K = torch.tensor(thetas[0])[:, None] * torch.tensor(B) / torch.tensor(thetas[1])
    with torch.no_grad():
        coupling.K.values.copy_(K.flatten())
    return array(coupling.matrix(metrics))


def test_mirrored_block_of_equation_3() -> None:
    """THEORY oracles 16 and 18."""
    L = feedback_between([[0.2**0.5, 5**0.5], [1.0]], [[-1.0], [1.0]])
    np.testing.assert_allclose(L, [[0, 0, -1], [0, 0, 1], [0.2, -5, 0]], atol=1e-12)
    L = feedback_between([[1.0], [2.0]], [[3.0]])
    np.testing.assert_allclose(L, [[0, 3], [-0.75, 0]], atol=1e-12)
    eigenvalues = np.sort_complex(np.linalg.eigvals(L - np.eye(2)))
    np.testing.assert_allclose(eigenvalues, [-1 - 1.5j, -1 + 1.5j], atol=1e-12)


def test_skew_coupling_without_the_metric_is_unstable_and_claims_nothing() -> None:
    """THEORY oracle 17, and that Feedback with the same strength is stable."""
    strong = Subnetwork(Absolute("tanh"), 2, weight=torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    still = Subnetwork(AdaDiagTanh("tanh"), 1, weight=torch.zeros(1, 1))
    free, feedback = (couple([strong, still], "all", kind=kind) for kind in ("free", "feedback"))
    with torch.no_grad():
        free.coupling.K.values.copy_(torch.tensor([-1.0, 1.0, 1.0, -1.0]))
        feedback.coupling.K.values.copy_(torch.tensor([-1.0, 1.0]))
    W = array(free.terms().weight())
    L = array(free.terms().L)
    assert abscissa(W - np.eye(3) + L) == pytest.approx(0.1795090246, abs=1e-8)
    assert free.rate is None
    assert exact_rate(free) < 0
    assert exact_rate(feedback) >= feedback.rate > 0


@pytest.mark.parametrize("form", ["x", "r"])
def test_rate_with_time_constants(form: str) -> None:
    modules = [
        stirred(SingularValueBounded("tanh", margin=0.2), 2, form=form, tau=torch.tensor([0.5, 3.0])),
        stirred(Symmetric("relu", margin=0.1), 2, form=form, tau=0.1),
        stirred(NegativeProduct("relu"), 2, form=form, tau=7.0),
    ]
    net = couple(modules, "all", init_scale=10.0)
    assert net.rate == pytest.approx(min(0.2 / 3.0, 0.1 / 0.1, 0.99 / 7.0), rel=1e-12)
    assert exact_rate(net) >= net.rate
    assert exact_rate(net) == pytest.approx(min(map(exact_rate, modules)), abs=1e-9)
    assert exact_rate(net, tau=False) < 0  # with blkdiag(M_i) the cancellation is lost


def moved(net: Assembly) -> Assembly:
    """Random edge weights of gain about 3 in place of the small start."""
    with torch.no_grad():
        next(net.coupling.children()).values.normal_(std=3.0)
    return net


def hierarchy(
    modules: list[Subnetwork | Assembly], pairs: list[tuple[int, int]], psi: str | None
) -> Assembly:
    return moved(Assembly(modules, Hierarchy([m.size for m in modules], pairs, psi=psi)))


@pytest.mark.parametrize("psi", [None, "tanh", "gelu", "selu"])
@pytest.mark.parametrize("dense", [False, True])
def test_hierarchy_keeps_half_the_rate_in_its_scaled_metric(psi: str | None, dense: bool) -> None:
    first = Symmetric("tanh", margin=0.3) if dense else Absolute("tanh", margin=0.3)
    modules = [
        stirred(first, 2, tau=2.0),
        stirred(SingularValueBounded("relu", margin=0.2), 2, form="r", tau=torch.tensor([0.3, 1.0])),
        stirred(NegativeProduct("tanh"), 2, tau=5.0),
    ]
    net = hierarchy(modules, [(0, 1), (1, 2), (0, 2)], psi)
    assert net.rate == pytest.approx(min(0.15, 0.2, 0.198) / 2, rel=1e-6)
    assert exact_rate(net) >= net.rate
    unscaled = Metric.join([module.metric() for module in modules]).matrix()
    ratio = array(net.metric().matrix()).diagonal() / array(unscaled).diagonal()
    assert ratio.max() / ratio.min() > 10  # the scaling is what makes it true


def test_chain_of_four_with_large_gains() -> None:
    modules = [stirred(SingularValueBounded("tanh", margin=0.1), 2) for _ in range(4)]
    net = hierarchy(modules, [(0, 1), (1, 2), (2, 3)], None)
    with torch.no_grad():
        net.coupling.K.values.mul_(10)
    assert exact_rate(net) >= net.rate == 0.05
    kappa = array(net.metric().matrix()).diagonal()
    assert kappa.max() / kappa.min() > 1e9


def test_metric_that_the_dtype_cannot_hold_is_refused() -> None:
    chain = torch.diag(torch.full((7,), 1e60), -1)
    with pytest.raises(ContractionError, match="hierarchy's metric"):
        hierarchy_scales(chain, torch.full((8,), 0.01))


@pytest.mark.parametrize("psi", [None, "tanh"])
def test_hierarchy_inside_feedback_inside_hierarchy(psi: str | None) -> None:
    inner = hierarchy(
        [stirred(SingularValueBounded("tanh", margin=0.4), 2), stirred(Absolute("relu", margin=0.4), 1)],
        [(0, 1)],
        psi,
    )
    middle = couple([inner, stirred(Symmetric("tanh", margin=0.3), 2, tau=0.5)], "all", init_scale=5.0)
    assert middle.rate == pytest.approx(0.2, rel=1e-6)
    assert exact_rate(middle) >= middle.rate
    L = array(middle.terms().L)
    if psi is None:
        K = np.zeros_like(L)
        K[:3, :3] = array(inner.terms().L)
        L = L - K
    assert skewness(array(middle.metric().matrix()), L) <= 1e-12
    if psi is None:  # two kinds of edges are out of reach of the vertex oracle
        outer = hierarchy([middle, stirred(NegativeProduct("relu"), 2)], [(0, 1)], "relu")
        assert exact_rate(outer) >= outer.rate == pytest.approx(0.1, rel=1e-6)


def test_hierarchy_gain_is_the_norm_in_the_metrics() -> None:
    modules = [stirred(Symmetric("tanh"), 3, tau=2.0), stirred(NegativeProduct("tanh"), 2, tau=0.5)]
    M = [array(m.metric().matrix()) for m in modules]
    for psi in (None, "tanh"):
        net = hierarchy(modules, [(0, 1)], psi)
        K = array(net.coupling.K())[3:, :3]
        gains = net.coupling.gains([m.metric() for m in modules], [m.tau for m in modules])
        T = [np.linalg.cholesky(m * t).T for m, t in zip(M, (2.0, 0.5), strict=True)]
        linear = np.linalg.norm(T[1] @ (K / 0.5) @ np.linalg.inv(T[0]), 2)
        split = np.linalg.norm(T[1] @ (K / 0.5), 2) * np.linalg.norm(np.linalg.inv(T[0]), 2)
        expected = linear if psi is None else split
        np.testing.assert_allclose(array(gains), [[0, 0], [expected, 0]], rtol=1e-9)
        a, b = (m.rate - min(modules[0].rate, modules[1].rate) / 2 for m in modules)
        kappa = a * b / ((a + expected) * (b + expected))
        scaled = array(net.metric().matrix())
        ratio = (scaled[3, 3] / M[1][0, 0]) / (scaled[0, 0] / M[0][0, 0])
        assert ratio == pytest.approx(kappa, rel=1e-9)


def test_hierarchy_scales_of_two_modules() -> None:
    """kappa_2 / kappa_1 = ab / ((a + gamma)(b + gamma)) with a, b the rates less l; oracle 19."""
    a, b, gamma = 0.4 - 0.2, 0.9 - 0.2, 7.0
    kappa = hierarchy_scales(torch.tensor([[0.0, 0.0], [gamma, 0.0]]), torch.tensor([0.4, 0.9]))
    ratio = float(kappa[1] / kappa[0])
    assert ratio == pytest.approx(a * b / ((a + gamma) * (b + gamma)), rel=1e-12)
    J = np.array([[-0.4, 0.0], [gamma, -0.9]])
    assert rates(J, np.diag([1.0, ratio])) >= 0.2
    assert rates(J, np.diag([1.0, 0.0048979592])) == pytest.approx(0.3, abs=1e-9)


def test_no_guarantee_when_a_part_has_none() -> None:
    sound, other = (Subnetwork(SingularValueBounded("tanh"), 2) for _ in range(2))
    for rule in (Unconstrained("tanh"), PublishedSparse(density=0.5, magnitude=0.1)):
        control = Subnetwork(rule, 2)
        for kind in ("feedback", "hierarchy", "free"):
            net = couple([sound, control], "all", kind=kind)
            assert net.rate is None
            assert couple([net, other], "all").rate is None
            net.metric()
    assert couple([sound, other], "all", kind="free").rate is None
    assert couple([sound, other], "none").rate == sound.rate


def test_no_rate_of_a_hierarchy_whose_pairs_are_not_those_of_its_values() -> None:
    """Its metric has the gains of `K.pairs` alone: gains that it misses would be promised for free."""
    net = couple([Subnetwork(SingularValueBounded("tanh"), 2) for _ in range(3)], kind="hierarchy")
    K = net.coupling.K
    assert net.rate is not None
    for pairs in ([(j, i) for i, j in K.pairs], K.pairs[:2]):
        K.pairs = pairs
        assert net.rate is None
    with torch.no_grad():
        K.values.zero_()
    assert net.rate is not None


def test_parameter_counts() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    modules = [Subnetwork(AdaDiagTanh("tanh"), 32, bias=False) for _ in range(16)]
    for kind, expected in (("feedback", 20480), ("hierarchy", 20480), ("free", 40960)):
        net = couple(modules, "random:20", kind=kind)
        assert count(net.coupling) == expected  # THEORY oracle 36
    assert count(Feedback([2, 3, 5], [(0, 2), (1, 2)])) == 10 + 15


@pytest.mark.parametrize("cls", [Feedback, Hierarchy, FreeCoupling])
def test_state_of_other_pairs_is_refused(cls: type[Feedback | Hierarchy | FreeCoupling]) -> None:
    one, same, other = (cls([2, 2, 2], pairs) for pairs in ([(0, 1)], [(1, 0)], [(0, 2)]))
    same.load_state_dict(one.state_dict())
    (loaded,), (saved,) = same.parameters(), one.parameters()
    assert torch.equal(loaded, saved)
    before = next(other.parameters()).clone()
    with pytest.raises(ConfigError, match="couples the blocks"):
        other.load_state_dict(one.state_dict())
    assert torch.equal(next(other.parameters()), before)


@pytest.mark.parametrize("init", ["uniform", "normal", "orthogonal"])
def test_initial_blocks(init: str) -> None:
    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return BlockMatrix([40, 30], [(1, 0)], init=init, init_scale=2.0, generator=generator)()

    whole = array(draw())
    assert torch.equal(draw(), draw())
    block = whole[40:, :40]
    assert np.count_nonzero(whole) == np.count_nonzero(block)
    bound = 2 / 40**0.5
    if init == "uniform":
        assert 0.99 * bound < np.abs(block).max() <= bound
    elif init == "normal":
        assert block.std() == pytest.approx(bound, rel=0.1)  # 1200 draws: 2 % standard error
    else:
        np.testing.assert_allclose(block @ block.T, 4 * np.eye(30), atol=1e-12)


def test_unknown_init_and_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 'xavier'.* uniform, normal, orthogonal"):
        Feedback([1, 1], [(0, 1)], init="xavier")
    with pytest.raises(ConfigError, match=r"got 'both'.* feedback, hierarchy, free"):
        couple(zoo()[:2], "all", kind="both")


def test_coupling_of_other_sizes_is_refused() -> None:
    modules = [Subnetwork(AdaDiagTanh("tanh"), n) for n in (2, 3)]
    with pytest.raises(ShapeError, match=r"\(3, 2\); got modules \(2, 3\)"):
        Assembly(modules, Feedback([3, 2], [(0, 1)]))


def test_vertex_oracle_sees_a_flipped_sign() -> None:
    """The check used above rejects a coupling with one sign turned, and the inverse metric."""
    net = couple(zoo()[:3], "all", init_scale=5.0)
    M, terms = array(net.metric().matrix()), net.terms()
    L = array(terms.L)
    flipped = L.copy()
    flipped[0, 3:] *= -1
    assert skewness(M, flipped) > 1e-3
    assert skewness(np.linalg.inv(M), L) > 1e-3
    assert isinstance(terms, Terms)
    assert worst_rate(array(terms.blocks[0]), M[:3, :3]) > 0
