"""`ctrnn bench`: complete rows, fair rounds, honest counts; no speeds."""

import itertools
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cli_tools import Cli
from ctrnn_assembly.benchmark.contestants import (
    ASSEMBLY,
    LIMITS,
    WORKS,
    Contestant,
    Workload,
    plain_loop,
)
from ctrnn_assembly.benchmark.measure import (
    AMOUNTS,
    NOISE,
    Calls,
    Timing,
    check_agreement,
    compared,
    measure,
    noise_of,
    schedule,
)
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.schemes import SCHEMES
from stored_runs import strict_json

TINY = Problem(n=12, units=4, batch=3, steps=5)
SIZE = ("--n", 12, "--units", 4, "--batch", 3, "--steps", 5)
OPTIONS = ("bench", "dense", *SIZE)
ROW = {
    "work", "name", "size", "n", "units", "batch", "steps", "coupling", "median_s", "min_s", "peak_mb",
    "device", "rounds", "useful_operations", "calls", "limit", "share", "beside", "times", "times_min",
}  # fmt: skip


CONTESTANTS = {contestant.name: contestant for contestant in ASSEMBLY}
PRESENT = [contestant for contestant in CONTESTANTS.values() if contestant.is_present("cpu")]


def timing(name="plain-loop", **more):
    """Nothing but a name and something to time."""
    problem = replace(TINY, **{k: more.pop(k) for k in ("coupling", "device") if k in more})
    return Timing(CONTESTANTS[name], problem, Workload(torch.Tensor), "dense", **more)


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


def bench(cli, *args):
    done = cli(*OPTIONS, "--device", "cpu", "--json", *args)
    assert done.code == 0, done.err
    return strict_json(done.out)


def test_json_has_a_row_for_every_contestant_beside_its_rival(cli):
    done = cli("bench", *SIZE, "--coupling", "random:1", "--rounds", 2, "--device", "cpu", "--json")
    found = strict_json(done.out)
    rows = {(row["work"], row["name"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    for work, (_, contestants) in WORKS.items():
        assert {one.name for one in contestants if one.is_present("cpu")} == {
            k for w, k in rows if w == work
        }
    for row in found["rows"]:
        assert set(row) == ROW
        assert (row["n"], row["batch"], row["steps"], row["rounds"]) == (12, 3, 5, 2)
        assert 0 < row["min_s"] <= row["median_s"]
        rival = rows[row["work"], row["beside"]]
        assert row["times"] == pytest.approx(row["median_s"] / rival["median_s"])
        assert 0 < row["share"] <= 1
        assert row["limit"] == "calls"  # of so small a problem
        assert row["share"] == pytest.approx(row["calls"] / found["rates"]["calls"] / row["min_s"])
        assert row["peak_mb"] is None
    assert rows["own", "torchdiffeq-rk4"]["beside"] == "ours-rk4"
    assert found["threads"] == torch.get_num_threads()
    assert {"python", "torch"} <= set(found["versions"])
    assert found["hardware"]
    assert found["date"]
    assert isinstance(found["noisy"], bool)
    assert found["device"] == "cpu"


def test_works_of_several_sizes_are_compared_by_operation(cli):
    known = {"work": "large", "median_s": 8.0, "min_s": 2.0, "useful_operations": 40, "n": 8}
    other = known | {"name": "first", "median_s": 1.0, "min_s": 1.0, "useful_operations": 10, "n": 4}
    assert compared(known, other) == {"beside": "first", "times": 2.0, "times_min": 0.5}


def test_the_table_says_what_was_checked_and_what_is_not_to_be_trusted(cli, tmp_path):
    picture = tmp_path / "speed.svg"
    done = cli(*OPTIONS, "--device", "cpu", "--rounds", 2, "--only", "ours-fused", "--only",
               "plain-loop", "--plot", picture)  # fmt: skip
    assert done.code == 0, done.err
    assert "agree with the plain loop" in done.out
    assert "GFLOP/s" in done.out
    assert "2 rounds are fewer than 7" in done.err
    assert "ours-fused" in picture.read_text()


def test_without_a_name_the_works_are_those_that_fit(cli):
    done = cli("bench", *SIZE, "--rounds", 1, "--only", "plain-loop", "--device", "cpu", "--json")
    # 3 modules have 3 pairs
    assert {row["work"] for row in strict_json(done.out)["rows"]} == {"dense", "small"}


def test_every_round_times_each_once_in_an_order_of_its_own():
    timings = [timing(peak_mb=k) for k in range(6)]
    order = [one.peak_mb for one in schedule(timings, 4)]
    rounds = [order[k : k + 6] for k in range(0, 24, 6)]
    assert all(sorted(one) == list(range(6)) for one in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert order == [one.peak_mb for one in schedule(timings, 4)]  # a fixed seed


def test_median_and_minimum_are_those_of_the_clock(monkeypatch):
    ticks = iter([0.0, 1.0, 0.0, 5.0, 0.0, 2.0])
    monkeypatch.setattr("ctrnn_assembly.benchmark.measure.perf_counter", partial(next, ticks))
    one = timing()
    one.seconds = [one.time() for _ in range(3)]
    assert (one.median, one.noise) == (2.0, 2.0)


def test_the_rates_of_the_machine_count_all_of_a_timing():
    with FlopCounterMode(display=False) as counter:
        LIMITS["float32"].build(TINY).run()
    assert counter.get_total_flops() == AMOUNTS["float32"]
    with Calls() as calls:
        LIMITS["calls"].build(TINY).run()
    assert AMOUNTS["calls"] <= calls.count <= AMOUNTS["calls"] + 2  # and the tensors it is done with


def test_a_noisy_machine_is_reported_and_a_quiet_one_is_not():
    quiet = timing(seconds=[1.0, 1.1, 1.2])
    noisy = timing("nn.RNN", seconds=[1.0, 2 * NOISE, 9.0])
    assert noise_of([quiet, quiet]) == []
    (sentence,) = noise_of([quiet, noisy])
    assert "nn.RNN dense cpu 2.50 times" in sentence
    assert "1 of 2" in sentence


def test_a_fake_clock_makes_the_report_noisy(monkeypatch):
    draw = random.Random(0)
    busy = itertools.accumulate(draw.choice((1.0, 4.0, 5.0)) for _ in itertools.count())
    for clock, noisy in ((busy, True), (itertools.count(), False)):
        monkeypatch.setattr("ctrnn_assembly.benchmark.measure.perf_counter", partial(next, clock))
        found = measure(TINY.size, ("dense",), only=("plain-loop",), device="cpu")
        assert found["noisy"] is noisy
        assert [note for note in found["notes"] if "too noisy" in note] == found["notes"]
        assert bool(found["notes"]) is noisy


def flops(problem):
    """Of matrix products, as torch counts them, without the input's."""
    with FlopCounterMode(display=False) as counter:
        plain_loop(problem).run()
    inputs = 4 * problem.steps * problem.batch * problem.n
    return counter.get_total_flops() - inputs


def test_useful_operations_of_dense_assemblies_are_what_torch_counts():
    # The first step starts from a constant: nothing is passed back through it.
    first = 2 * TINY.batch * (TINY.n**2 + TINY.modules * TINY.units**2)
    assert CONTESTANTS["plain-loop"].operations(TINY) == flops(TINY) + first


@pytest.mark.parametrize("net", ["svd-combo", "adadiag-tanh"])
def test_useful_operations_of_sparse_couplings_count_entries_that_are_not_zero(net):
    problem = replace(TINY, coupling="random:2", net=net)
    contestant = Contestant("any", plain_loop)
    coupling = int(problem.terms.L.count_nonzero())
    weights = sum(int(W.count_nonzero()) for W in problem.terms.blocks)
    passes = 2 * TINY.steps * TINY.batch
    wanted = 3 * passes * (coupling + weights)
    assert contestant.operations(problem) == wanted
    k, C, p, n = 4, 2, 3, 12
    if net == "svd-combo":
        assert wanted == 6 * 5 * 3 * k**2 * (2 * C + p)
    if net == "adadiag-tanh":
        assert wanted == 6 * 5 * 3 * (2 * C * k**2 + n)


@pytest.mark.parametrize("name", ["nn.RNN", "nn.LSTM"])
def test_useful_operations_of_recurrent_layers_are_those_of_their_matrix(name):
    contestant = CONTESTANTS[name]
    W = next(p for p in contestant.build(TINY).parameters if p.shape[-1] == TINY.n)
    assert contestant.operations(TINY) == 3 * 2 * 5 * 3 * W.numel()


def test_same_numbers_on_every_dtype_and_zeros_outside_the_pairs():
    one, two = (
        replace(TINY, coupling="random:1", dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    for a, b in zip(one.terms.tensors(), two.terms.tensors(), strict=True):
        assert torch.equal(a.double(), b)
    assert torch.equal(one.u.double(), two.u)
    assert int(one.terms.L.count_nonzero()) == 2 * TINY.units**2
    assert torch.equal(one.terms.L, -one.terms.L.mT)


@pytest.mark.parametrize("name", [c.name for c in PRESENT if c.coupled])
def test_no_gradient_fades_or_explodes_over_a_long_sequence(name):
    contestant = CONTESTANTS[name]
    problem = Problem(n=12, units=4, batch=2, steps=2000, **contestant.changes)
    for gradient in contestant.build(problem).run():
        largest = float(gradient.abs().max())
        assert 1e-30 < largest < 1e10  # denormal numbers would slow a CPU down a hundredfold


@pytest.mark.parametrize("name", ["nn.RNN", "nn.LSTM"])
def test_gradients_of_the_recurrent_layers_do_not_fade_either(name):
    gradients = CONTESTANTS[name].build(Problem(n=12, units=4, batch=2, steps=1000)).run()
    assert all(1e-30 < float(g.abs().max()) < 1e10 for g in gradients)


def test_torchdyno_computes_the_states_of_the_plain_loop():
    pytest.importorskip("torchdyno")
    # Its blocks are outside of the activation, and it has no bias.
    problem = replace(TINY, coupling="random:2")
    with torch.no_grad():
        problem.terms.bias.zero_()
        expected = plain_loop(problem).last()
        torch.testing.assert_close(CONTESTANTS["torchdyno-scn"].build(problem).last(), expected)


def test_a_wrong_solver_is_refused():
    for contestant in PRESENT:
        check_agreement(contestant, replace(TINY, coupling="random:2", **contestant.changes))

    def wrong(problem):
        right = plain_loop(problem)
        return Workload(lambda: 1.001 * right.last(), right.parameters)

    bad = Contestant("ours-wrong", wrong, tolerance=1e-5)
    with pytest.raises(SolverError, match=r"ours-wrong with coupling all .* Nothing was timed"):
        check_agreement(bad, TINY)


def test_a_backend_that_cannot_run_here_is_left_out_with_its_reason(monkeypatch):
    def cannot(problem):
        def last():
            raise SolverError("this GPU is too small.")

        return Workload(last, problem.parameters)

    broken = Contestant("ours-broken", cannot, backend="fused", tolerance=1e-5)
    monkeypatch.setitem(WORKS, "dense", ({}, (*ASSEMBLY, broken)))
    found = measure(TINY.size, ("dense",), only=("plain-loop", "ours-broken"), rounds=1)
    assert {row["name"] for row in found["rows"]} == {"plain-loop"}
    assert found["notes"][0] == "ours-broken with all was left out: this GPU is too small."


@pytest.mark.parametrize("coupling", ["none", "random:2"])
def test_a_wrong_row_of_the_table_of_schemes_is_refused(monkeypatch, coupling):
    """The implicit step is checked against a linear solve of the check's own."""
    right = SCHEMES["imex"]

    def wrong(h, L):
        A, C = right.pair(h, L)
        return A, 1.001 * C

    problem = replace(TINY, coupling=coupling)
    imex = next(one for one in WORKS["imex"][1] if one.name == "imex-all")
    check_agreement(imex, problem)
    monkeypatch.setitem(SCHEMES, "imex", replace(right, pair=wrong))
    with pytest.raises(SolverError, match=r"imex-all with coupling .* differs"):
        check_agreement(imex, problem)


def test_ctrl_c_prints_what_was_measured_until_then(cli, monkeypatch):
    real = Timing.time

    def stopped(self):
        if len(self.seconds) == 2:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Timing, "time", stopped)
    done = cli(*OPTIONS, "--device", "cpu", "--only", "plain-loop", "--json")
    assert done.code == 130
    found = strict_json(done.out)
    assert found["interrupted"]
    assert [row["rounds"] for row in found["rows"]] == [2]


def test_wrong_input_is_refused_in_one_sentence(cli, tmp_path):
    assert "got 500. Use n=480, or units=25" in cli.refuses("bench", "dense", "--n", 500)
    assert "n must be at least 1" in cli.refuses("bench", "--n", 0)
    assert "work must be" in cli.refuses("bench", "denser")
    assert "batch must" in cli.refuses(*OPTIONS, "--batch", 0)
    assert "steps must" in cli.refuses(*OPTIONS, "--steps", -1)
    assert "rounds must" in cli.refuses(*OPTIONS, "--rounds", 0)
    assert "threads must" in cli.refuses(*OPTIONS, "--threads", 0)
    assert "3 modules have 3 pairs" in cli.refuses(*OPTIONS, "--coupling", "random:4")
    assert "coupling must be" in cli.refuses(*OPTIONS, "--coupling", "everything")
    said = cli.refuses(*OPTIONS, "--only", "nn.GRU")
    assert "got 'nn.GRU'. Did you mean 'nn.RNN'" in said
    assert "contestant must be one of ours, " in said
    assert "--plot" in cli.refuses(*OPTIONS, "--plot", tmp_path / "speed.bmp")
    assert "cannot run on cpu" in cli.refuses(*OPTIONS, "--only", "ours-graph", "--device", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(cli):
    assert "--device cuda" in cli.refuses(*OPTIONS, "--device", "cuda")
