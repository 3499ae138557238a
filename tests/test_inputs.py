"""Input signals: exact at the samples, of their order between them, constant beyond."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly.errors import DataError, ShapeError
from ctrnn_assembly.inputs import (
    INTERPOLATIONS,
    CubicHermite,
    LinearInterpolation,
    Signal,
    ZeroOrderHold,
)
from solver_problems import F64, normal, order

TIMES = torch.tensor([0.0, 0.3, 0.5, 1.1, 2.0], dtype=F64)
ALL = list(INTERPOLATIONS.values())


def at(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def between(signal: Signal, count: int = 40) -> tuple[Tensor, Tensor]:
    """Times over the whole grid and u there, (batch, count, m)."""
    t = torch.linspace(float(signal.times[0]), float(signal.times[-1]), count, dtype=F64)
    return t, torch.stack([signal(s) for s in t], 1)


@pytest.mark.parametrize("kind", ALL)
def test_a_signal_passes_through_its_samples(kind: type[Signal]) -> None:
    samples = normal(3, 5, 2)
    signal = kind(samples, TIMES)
    assert_close(torch.stack([signal(s) for s in TIMES], 1), samples, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", ALL)
def test_a_signal_is_constant_beyond_its_samples(kind: type[Signal]) -> None:
    samples = normal(3, 5, 2)
    signal = kind(samples, TIMES)
    for before in (-1e-6, -1.0, -100.0):
        assert torch.equal(signal(at(before)), samples[:, 0])
    for after in (2.0, 2.1, 100.0):
        assert torch.equal(signal(at(after)), samples[:, -1])


@pytest.mark.parametrize("kind", ALL)
def test_arrays_are_samples_and_what_is_written_into_them_later_is_seen_whole_or_not_at_all(
    kind: type[Signal],
) -> None:
    samples = normal(3, 5, 2)
    lengths = torch.tensor([5, 2, 4])
    of_arrays = kind(samples.numpy(), TIMES.numpy(), lengths.numpy())  # type: ignore[arg-type]
    assert torch.equal(between(of_arrays)[1], between(kind(samples, TIMES, lengths))[1])
    before, signal = kind(samples.clone(), TIMES), kind(samples, TIMES)
    samples += 1
    expected = before if kind is CubicHermite else kind(samples.clone(), TIMES)
    for t in (*between(signal)[0], at(3.0), at(-1.0)):
        assert torch.equal(signal(t), expected(t))


@pytest.mark.parametrize("kind", ALL)
def test_one_sample_is_a_constant(kind: type[Signal]) -> None:
    signal = kind(normal(3, 1, 2), TIMES[:1])
    for t in (-1.0, 0.0, 5.0):
        assert torch.equal(signal(at(t)), signal.samples[:, 0])


def test_hold_keeps_each_sample_until_the_next() -> None:
    signal = ZeroOrderHold(normal(1, 5, 1), TIMES)
    for k in range(4):
        last = torch.nextafter(TIMES[k + 1], at(0.0))
        assert torch.equal(signal(last), signal.samples[:, k])
        assert torch.equal(signal(TIMES[k + 1]), signal.samples[:, k + 1])
    assert signal.breaks.tolist() == TIMES[1:].tolist()


def test_linear_reproduces_lines_and_breaks_at_every_sample() -> None:
    slope = normal(2, 1, 3)
    signal = LinearInterpolation(1 + slope * TIMES[:, None], TIMES)
    t, u = between(signal)
    assert_close(u, 1 + slope * t[:, None], rtol=1e-13, atol=1e-13)
    assert signal.breaks.tolist() == TIMES.tolist()


def test_cubic_reproduces_quadratics_inside_an_even_grid() -> None:
    # The mean of two secants is the exact slope of a quadratic on an even grid, but at the ends.
    times = torch.arange(9, dtype=F64) / 4
    a, b = normal(2, 1, 3), normal(2, 1, 3, seed=1)
    signal = CubicHermite(1 + a * times[:, None] + b * times[:, None] ** 2, times)
    t, u = between(signal, 65)
    inner = (t >= times[1]) & (t <= times[-2])
    exact = 1 + a * t[:, None] + b * t[:, None] ** 2
    assert_close(u[:, inner], exact[:, inner], rtol=1e-13, atol=1e-13)
    assert float((u - exact)[:, ~inner].abs().max()) > 1e-3  # and only there
    assert signal.breaks.tolist() == [0.0, 2.0]  # the constants beyond have another slope


def test_cubic_has_a_continuous_slope() -> None:
    signal = CubicHermite(normal(2, 5, 3), TIMES)
    for t in TIMES[1:-1]:
        h = 1e-6
        left = (signal(t) - signal(t - h)) / h
        right = (signal(t + h) - signal(t)) / h
        assert_close(left, right, rtol=1e-4, atol=1e-4)  # one-sided differences: O(h u'')


@pytest.mark.parametrize(
    ("kind", "expected"), [(ZeroOrderHold, 1), (LinearInterpolation, 2), (CubicHermite, 3)]
)
def test_interpolation_converges_at_its_order(kind: type[Signal], expected: int) -> None:
    # Away from the ends, whose one-sided slope costs the cubic one order.
    errors, steps = [], []
    for n in (32, 64, 128, 256):
        times = torch.linspace(0, 3, n + 1, dtype=F64)
        signal = kind(torch.sin(2 * times).view(1, -1, 1), times)
        t = torch.linspace(1, 2, 997, dtype=F64)
        u = torch.stack([signal(s)[0, 0] for s in t])
        errors.append(float((u - torch.sin(2 * t)).abs().max()))
        steps.append(3 / n)
    assert order(errors, steps) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("kind", ALL)
def test_a_signal_is_differentiable_in_its_samples(kind: type[Signal]) -> None:
    f = lambda samples: kind(samples, TIMES)(at(0.83))  # noqa: E731
    assert torch.autograd.gradcheck(f, normal(2, 5, 2).requires_grad_())


@pytest.mark.parametrize("kind", [LinearInterpolation, CubicHermite])
def test_a_signal_is_differentiable_in_the_times_of_its_samples(kind: type[Signal]) -> None:
    samples = normal(2, 5, 2)
    f = lambda times: kind(samples, times)(at(0.83))  # noqa: E731
    assert torch.autograd.gradcheck(f, TIMES.clone().requires_grad_())
    assert_close(torch.func.jacfwd(f)(TIMES), torch.autograd.functional.jacobian(f, TIMES))


def test_times_rounded_to_float32_still_show_their_own_sample() -> None:
    # A solver hands over float32 times for float32 states; 0.03 k rounds down for many k.
    times = torch.arange(2000, dtype=F64).mul(0.03)
    signal = ZeroOrderHold(torch.arange(2000.0).view(1, -1, 1), times)
    seen = [int(signal(t)) for t in times.float()]
    assert seen == list(range(2000))
    assert any(float(t32) < float(t) for t32, t in zip(times.float(), times, strict=True))


@pytest.mark.parametrize(
    ("samples", "times"),
    [((3, 5), (5,)), ((3, 5, 2), (4,)), ((3, 5, 2), (5, 1)), ((3, 0, 2), (0,))],
)
def test_shapes_that_do_not_fit_are_refused(samples: tuple[int, ...], times: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(batch, time, m\)"):
        ZeroOrderHold(torch.zeros(samples), torch.zeros(times))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_is_named(bad: float) -> None:
    samples = normal(3, 5, 2)
    samples[1, 4, 0] = bad
    with pytest.raises(DataError, match=rf"{bad} at index \(1, 4, 0\)"):
        LinearInterpolation(samples, TIMES)


@pytest.mark.parametrize("last", [1.1, 1.0, math.nan, math.inf])
def test_times_must_increase_and_be_finite(last: float) -> None:
    times = TIMES.clone()
    times[-1] = last
    with pytest.raises(DataError, match="finite and increase"):
        LinearInterpolation(normal(3, 5, 2), times)
