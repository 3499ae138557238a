"""Proof files: what `verifier.py` accepts holds, and whatever is forged or broken is refused."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from shutil import copy
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from numpy import ndarray
from safetensors.numpy import load_file, save_file

import false_claims
from cli_tools import Cli
from ctrnn_assembly import Certificate, ContractionError, Metric, Subnetwork, Symmetric, certify
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.certificates import verifier
from ctrnn_assembly.certificates.given import terms_of
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.proofs import claimed, matrices, write_proof
from ctrnn_assembly.certificates.verifier import Ball, RefusedError, integral, inverse, positive, verify
from ctrnn_assembly.metrics import Factor
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Terms
from exact import Field
from stored_runs import store_run

VERIFIER = Path(verifier.__file__)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "120")
    return Cli(capsys)


def some_terms(n: int, place: Any, seed: int, phi: str = "tanh", size: float = 0.5) -> Terms:
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, n)) / n**0.5
    W = size * rng.standard_normal((n, n)) / n**0.5
    return terms_of(W, K - K.T, activation=phi, place=place)


def metric_of(n: int, kind: str, seed: int = 0, spread: float = 0.3) -> Metric:
    rng = np.random.default_rng(seed)
    d = torch.from_numpy(spread * rng.standard_normal(n))
    if kind == "diagonal":
        return Metric((Factor.diagonal(d),))
    theta = torch.diag(d.exp()) + 0.1 * spread * torch.from_numpy(rng.standard_normal((n, n)))
    return Metric((Factor(theta, torch.linalg.inv(theta)),))


def written(folder: Path, terms: Terms, found: Certificate | None = None) -> Path:
    (folder / "weights.npz").write_bytes(b"the weights")
    found = found or certify(terms, dt=0.03)
    write_proof(folder / "proof.json", terms, found, folder / "weights.npz")
    return folder / "proof.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("made"), some_terms(4, "outside", 0))


@pytest.fixture
def proof(made: Path, tmp_path: Path) -> Path:
    """Of four units, a copy to spoil."""
    for file in made.parent.iterdir():
        copy(file, tmp_path)
    return tmp_path / made.name


def judged(*arguments: object) -> int:
    """The exit code of the verifier as a program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verifier.py", *map(str, arguments)])
        try:
            runpy.run_path(str(VERIFIER), run_name="__main__")
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 1
    return 0


def signed(file: Path, proof: dict[str, Any]) -> None:
    """Hashes made anew."""
    data = (file.parent / proof["matrices"]["file"]).read_bytes()
    proof["matrices"]["sha256"] = sha256(data).hexdigest()
    text = json.dumps(proof | {"sha256": "0" * 64})
    file.write_text(text.replace("0" * 64, sha256(text.encode()).hexdigest()))


def forge(
    file: Path,
    of_proof: Callable[[Any], Any] = lambda proof: None,
    of_arrays: Callable[[Any], Any] = lambda arrays: None,
) -> None:
    """Change what a proof says, or its arrays, and every hash with it."""
    proof = json.loads(file.read_text())
    arrays = {name: array.copy() for name, array in load_file(beside(file)).items()}
    of_proof(proof), of_arrays(arrays)
    save_file(arrays, beside(file))
    signed(file, proof)


def beside(file: Path) -> Path:
    return file.with_suffix(".matrices.safetensors")


def field_of(terms: Terms, theta: ndarray) -> Field:
    """Of one module; theta has no tau in it."""
    inside = terms.pre.is_identity
    phi = (terms.post if inside else terms.pre).units[0]
    n = terms.n
    L = np.zeros((n, n)) if terms.L is None else terms.L.numpy()
    slopes = np.tile(phi.slope, (n, 1))
    before = np.full(n, not inside)
    return Field(terms.weight().numpy(), before, slopes, terms.tau.numpy(), theta, L)


@pytest.mark.parametrize("solver", SCHEMES)
@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_round_trip(tmp_path: Path, solver: str, place: str, kind: str) -> None:
    terms, metric = some_terms(5, place, 1), metric_of(5, kind, 1)
    found = certify(terms, metric, dt=0.03, solver=solver, search="none")
    assert found.certified
    assert found.step is not None
    assert found.step.contraction_factor is not None
    file = written(tmp_path, terms, found)
    flow, step = json.loads(file.read_text())["claims"]
    assert flow["bound"] >= found.rate * (1 - 1e-3)
    assert step["bound"] <= 1 - (1 - found.step.contraction_factor) * (1 - 1e-3)
    assert judged(file) == 0


@pytest.mark.parametrize("phi", ["gelu", "sigmoid", "selu", "identity", "leaky_relu"])
def test_other_slopes(tmp_path: Path, phi: str) -> None:
    terms = some_terms(6, "outside", 3, phi, 0.3)
    file = written(tmp_path, terms, certify(terms, dt=0.03, solver="exponential-euler"))
    assert len(json.loads(file.read_text())["claims"]) == 2


def test_table_of_slopes() -> None:
    assert {name: phi.slope for name, phi in ACTIVATIONS.items()} == verifier.SLOPES


def test_numpy_alone(tmp_path: Path) -> None:
    """A referee has neither torch nor the library."""
    terms = some_terms(4, "outside", 0)
    file = written(tmp_path, terms, certify(terms, dt=0.03, solver="exponential-euler"))
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'scipy', 'safetensors', 'ctrnn_assembly'))\n"
        f"sys.argv = ['verifier.py', {str(file)!r}]\n"
        f"runpy.run_path({str(VERIFIER)!r}, run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "step of 0.03 by exponential-euler" in ran.stdout


def test_changed_bytes_are_refused_by_hash(tmp_path: Path, proof: Path) -> None:
    file = proof
    for path in (file, beside(file), tmp_path / "weights.npz"):
        content = path.read_bytes()
        for k in {len(content) // 2, len(content) - 2}:
            path.write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
            assert judged(file) in ((1, 2) if path == file else (1,))
        path.write_bytes(content + b" ")
        assert judged(file) == 1
        path.write_bytes(content)
    assert judged(file) == 0
    other = tmp_path / "other.npz"
    other.write_bytes(b"other weights")
    assert judged(file, other) == 1
    (tmp_path / "weights.npz").unlink()
    assert "not at hand" in verify(file)[-1]


def claim(k: int, **what: Any) -> Callable[[Any], Any]:
    return lambda proof: proof["claims"][k].update(what)


def entry(name: str, value: float) -> Callable[[Any], Any]:
    return lambda arrays: arrays[name].__setitem__((0,) * arrays[name].ndim, value)


def scaled(name: str, factor: float) -> Callable[[Any], Any]:
    return lambda arrays: arrays.update({name: arrays[name] * factor})


FORGED = {
    "rate": (claim(0, bound=0.9), None),
    "factor": (claim(1, bound=0.9), None),
    "factor above 1": (claim(1, bound=1.01), None),
    "negative rate": (claim(0, bound=-1.0), None),
    "longer step": (claim(1, dt=3.0), None),
    "no step": (claim(1, dt=0.0), None),
    "flow with a step": (claim(0, dt=0.5), None),
    "unknown solver": (claim(1, solver="rk4"), lambda a: a.update({"T rk4": a["T euler"]})),
    "steeper phi": (lambda proof: proof.update(activations="selu " * 4), None),
    "weights": (None, scaled("X", 2.0)),
    "coupling": (None, entry("L", 3.0)),
    "time constants": (None, scaled("tau", 10.0)),
    "negative time constant": (None, entry("tau", -1.0)),
    "metric": (None, scaled("theta", 0.0)),
    "singular metric": (None, lambda arrays: arrays["theta"].__setitem__(0, 0.0)),
    "other metric": (None, entry("theta", 40.0)),
    "negative multiplier": (None, entry("T flow", -1.0)),
    "no multiplier": (None, entry("T euler", 0.0)),
    "other multipliers": (None, scaled("T euler", 1e3)),
    "enormous numbers": (None, scaled("X", 1e300)),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused_by_the_numbers(proof: Path, name: str) -> None:
    nothing: Callable[[Any], Any] = lambda _: None  # noqa: E731
    of_proof, of_arrays = FORGED[name]
    forge(proof, of_proof or nothing, of_arrays or nothing)
    assert judged(proof) == 1


BROKEN = {
    "nothing": lambda file: file.write_text(""),
    "no object": lambda file: file.write_text("[1, 2]"),
    "another kind": lambda file: forge(file, lambda proof: proof.update(kind="witness")),
    "another version": lambda file: forge(file, lambda proof: proof.update(version=2)),
    "no claim": lambda file: forge(file, lambda proof: proof.update(claims=[])),
    "half a claim": lambda file: forge(file, lambda proof: proof["claims"][0].pop("dt")),
    "words": lambda file: forge(file, claim(0, bound="fast")),
    "unknown phi": lambda file: forge(file, lambda proof: proof.update(activations="sine " * 4)),
    "too few phi": lambda file: forge(file, lambda proof: proof.update(activations="tanh")),
    "ragged": lambda file: forge(file, of_arrays=lambda arrays: arrays.update(L=np.zeros((4, 3)))),
    "NaN": lambda file: forge(file, of_arrays=entry("X", np.nan)),
    "no W": lambda file: forge(file, of_arrays=lambda arrays: arrays.pop("X")),
    "no T": lambda file: forge(file, of_arrays=lambda arrays: arrays.pop("T flow")),
    "float32": lambda file: forge(
        file, of_arrays=lambda arrays: arrays.update(X=arrays["X"].astype(np.float32))
    ),
    "no matrices": lambda file: beside(file).unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_sentence(
    proof: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    BROKEN[name](proof)
    assert judged(proof) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_cut_matrices_are_one_sentence(proof: Path) -> None:
    content = beside(proof).read_bytes()
    for data in (b"", content[:4], content[:40], content[:-8], b"\xff" * 100):
        beside(proof).write_bytes(data)
        signed(proof, json.loads(proof.read_text()))
        assert judged(proof) == 2
    assert judged() == judged(1, 2, 3) == 2


def test_what_no_file_can_prove_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"")
    terms = some_terms(4, "outside", 0)
    steep = terms_of(3 * torch.eye(4))
    within = certify(terms, uncertainty=0.01)
    for net, found in ((steep, certify(steep)), (terms, within), (terms, certify(torch.nn.RNN(2, 4)))):
        with pytest.raises(ContractionError):
            write_proof(tmp_path / "proof.json", net, found, weights)
    declared = replace(certify(terms), declared=("mine",))
    with pytest.raises(ContractionError):
        write_proof(tmp_path / "proof.json", terms, declared, weights)
    assert [*tmp_path.iterdir()] == [weights]


def test_a_verifier_that_refuses_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*files: Path) -> None:
        raise RefusedError("no")

    monkeypatch.setattr(verifier, "verify", refuse)
    with pytest.raises(ContractionError, match="does not accept"):
        written(tmp_path, some_terms(4, "outside", 0))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]
    monkeypatch.undo()
    written(tmp_path, some_terms(4, "outside", 0))
    before = {file.name: file.read_bytes() for file in tmp_path.glob("proof*")}
    monkeypatch.setattr(verifier, "verify", refuse)
    with pytest.raises(ContractionError, match="does not accept"):
        written(tmp_path, some_terms(4, "outside", 1))
    assert {file.name: file.read_bytes() for file in tmp_path.glob("proof*")} == before
    assert len(before) == 2


@pytest.mark.parametrize("draws", [60, pytest.param(150, marks=pytest.mark.slow)])
def test_nothing_better_than_the_exact_bounds_is_accepted(draws: int) -> None:
    """The exact rate and factor are those of the worst vertex of the slopes, for n <= 5."""
    rng, near = np.random.default_rng(draws), []
    for seed in range(draws):
        n, place = int(rng.integers(1, 6)), ("outside", "inside")[seed % 2]
        solver = (*SCHEMES,)[seed % 3]
        phi, size = (("tanh", 0.5), ("gelu", 0.3), ("selu", 0.2))[int(rng.integers(3))]
        terms = some_terms(n, place, seed, phi, size * rng.choice([0.3, 1.0, 1.5]))
        kind, spread = ("diagonal", "dense")[int(rng.integers(2))], float(rng.choice([0.1, 0.6]))
        if kind == "diagonal":
            terms = replace(terms, tau=torch.from_numpy(np.exp(2 * rng.standard_normal(n))))
        dt, metric = float(np.exp(rng.uniform(-6, 0.5))), metric_of(n, kind, seed, spread)
        field = field_of(terms, metric.theta().numpy())
        for of, h in (("flow", 0.0), (solver, dt)):
            worst = field.step_family(h, of).worst()[0] if h else field.rate_family().worst()[0]
            exact = 1 + worst if h else -worst
            if not 0 < exact < (1 if h else 1e9):
                continue
            arrays, names = matrices(terms, metric)
            found = claimed(Interconnection.of(terms, metric), arrays, names, of, h)
            for T in (arrays[f"T {of}"], rng.uniform(0.5, 2, n) * arrays[f"T {of}"]):
                arrays[f"T {of}"] = T
                better = 1 - (1 - exact) * (1 + 1e-9) if h else exact * (1 + 1e-9)
                assert not verifier.proves(arrays, names, of, h, better)
            for one in found:
                assert one["bound"] >= exact * (1 - 1e-12) if h else one["bound"] <= exact * (1 + 1e-12)
                lost = (1 - exact) / (1 - one["bound"]) if h else exact / one["bound"]
                near.append(lost < 1.25)
    assert len(near) > draws / 2
    assert sum(near) > 0.6 * len(near)


def test_claims_at_the_edge_are_true_where_they_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = false_claims.hunt(500, 0)
    assert found["accepted within 1e-6 of the edge"] > 20
    assert not found["FALSE YES"]
    strict = verifier.proves

    def lax(arrays: Any, names: Any, of: str, dt: float, bound: float) -> bool:
        looser = bound * (1 - 1e-6) if of == "flow" else 1 - (1 - bound) * (1 - 1e-6)
        return strict(arrays, names, of, dt, looser)

    monkeypatch.setattr(verifier, "proves", lax)
    assert false_claims.hunt(500, 0)["FALSE YES"]


def test_dense_metric_needs_the_sector_of_w_itself() -> None:
    """Of `phi` and not of Theta phi: the short form says .888, the worst vertex 1.1601."""
    M = torch.tensor([[1.7, -0.9], [-0.9, 1.1]], dtype=torch.float64)
    theta = torch.linalg.cholesky(M).mT
    metric = Metric((Factor(theta, torch.linalg.inv(theta)),))
    terms = terms_of([[0.1, -0.7], [-1.0, -0.1]])
    arrays, names = matrices(terms, metric)
    for kappa in np.geomspace(0.05, 20, 60):
        arrays["T euler"] = kappa * np.ones(2)
        assert not verifier.proves(arrays, names, "euler", 1.0, 0.9999)


def fractions(A: ndarray) -> Any:
    return np.vectorize(Fraction, otypes=[object])(A)


def contained(ball: Ball, exact: Any) -> bool:
    inside = abs(fractions(ball.mid) - exact) <= fractions(np.array(ball.off))
    return bool(inside.all())


def test_balls_contain_the_exact_results() -> None:
    rng, tight = np.random.default_rng(0), 0
    for _ in range(50):
        A, B = (np.exp(4 * rng.standard_normal((3, 3))) * rng.choice([-1, 1], (3, 3)) for _ in "ab")
        c = float(rng.standard_normal())
        a, b = Ball(A, 1e-9 * abs(A)), Ball(B, 1e-9 * abs(B))
        # any member of either ball, here at an edge
        moved = [fractions(m.mid) + fractions(m.off) * rng.choice([-1, 1], (3, 3)) for m in (a, b)]
        assert contained(Ball(A) @ Ball(B), fractions(A) @ fractions(B))
        assert contained(Ball(A) + Ball(B), fractions(A) + fractions(B))
        assert contained(Ball(A) * (1 / c), fractions(A) / Fraction(c))
        assert contained(a @ b, moved[0] @ moved[1])
        assert contained(a + b, moved[0] + moved[1])
        assert contained(a * c, moved[0] * Fraction(c))
        tight += (a @ b).off.max() < 3e-9 * (abs(A) @ abs(B)).max()
    assert tight == 50


@pytest.mark.parametrize("n", [1, 4, 9])
def test_inverse_and_exponential_are_enclosed(n: int) -> None:
    rng = np.random.default_rng(n)
    for size in (1e-9, 0.1, 1.0, 6.0, 40.0):
        G, off = size * rng.standard_normal((n, n)) / n**0.5, size * rng.choice([0.0, 1e-6])
        member = mpmath.matrix((G + off * rng.choice([-1, 1], (n, n))).tolist())
        both = mpmath.matrix(2 * n, 2 * n)
        both[:n, :n], both[:n, n:] = member, mpmath.eye(n)
        with mpmath.workdps(50):
            integrated = mpmath.expm(both)[:n, n:]
            inverted = (mpmath.eye(n) + member / (2 * size * n)) ** -1
        S = Ball(np.eye(n)) + Ball(G, off) * (1 / (2 * size * n))
        for ball, exact in ((integral(Ball(G, off)), integrated), (inverse(S), inverted)):
            for i in range(n):
                for j in range(n):
                    assert abs(exact[i, j] - mpmath.mpf(float(ball.mid[i, j]))) <= ball.off[i, j]
            assert off or size > 10 or ball.off.max() < 1e-9 * max(1.0, abs(ball.mid).max())
    for unknown in (inverse(Ball(np.eye(n), 1.0)), integral(Ball(np.full((n, n), 1e300)))):
        assert unknown.off.min() == np.inf


def test_singular_matrices_are_not_positive() -> None:
    """Cholesky in floating point runs to its end for some of them."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(300):
        n = int(rng.integers(2, 9))
        A = rng.integers(-2000, 2000, (n, n - 1)).astype(float)
        S = A @ A.T  # exactly: integers below 2^53
        assert not positive(Ball(S))
        try:
            np.linalg.cholesky(S)
            passed += 1
        except np.linalg.LinAlgError:
            continue
    assert passed > 20


def test_the_radius_of_a_matrix_counts() -> None:
    S, off = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[0.0, 0.5], [0.5, 0.0]])
    assert positive(Ball(S, 0.9 * off))
    assert not positive(Ball(S, off))
    D = np.array([1e-60, 1e60])  # any scale will do
    assert positive(Ball(D[:, None] * S * D, 0.9 * D[:, None] * off * D))
    assert not positive(Ball(np.array([[1.0, np.nan], [np.nan, 1.0]])))
    assert not positive(Ball(S, np.array([[0.0, np.inf], [0.0, 0.0]])))


def test_rounding_takes_the_last_digits_of_a_claim(tmp_path: Path) -> None:
    """W = 0 has the rate 1, exactly: no bound that rounds to it is accepted."""
    file = written(tmp_path, terms_of(torch.zeros(3, 3)))
    rate = json.loads(file.read_text())["claims"][0]["bound"]
    assert 1 - 1e-3 < rate < 1
    forge(file, claim(0, bound=1.0))
    assert judged(file) == 1


def test_net_whose_norm_exceeds_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    S, d = rng.standard_normal((60, 60)), np.exp(rng.standard_normal(60))
    W = 0.8 * S / np.linalg.norm(S, 2) * d / d[:, None]
    assert np.linalg.norm(W, 2) > 1
    assert judged(written(tmp_path, terms_of(W))) == 0


def test_run_and_weights_write_proofs(tmp_path: Path, cli: Cli) -> None:
    store_run(tmp_path / "run", model="svd-combo", solver="imex")
    digest = sha256((tmp_path / "run/model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "run/summary.json").write_text(json.dumps({"weights_sha256": digest}))
    file = tmp_path / "new/proof.json"
    said = cli("certify", tmp_path / "run", "--write-proof", file)
    assert "imex step" in said.out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["proof"]["sha256"] == sha256(file.read_bytes()).hexdigest()
    proof = json.loads(file.read_text())
    assert proof["dtype"] == str(torch.get_default_dtype())
    assert proof["weights"]["file"] == "../run/model.safetensors"
    assert judged(file) == cli("check", file).code == 0
    store_run(tmp_path / "run", model="svd-combo", solver="imex", seed=5)
    assert judged(file) == cli("check", file).code == 1
    assert "a proof is of weights in a file; got 'digits'" in cli.refuses("check", file, "digits")
    forge(file, lambda proof: proof.update(claims=[]))
    assert cli.refuses("check", file).startswith("error: no proof file")

    np.savez(tmp_path / "net.npz", W=0.3 * np.eye(3), tau=np.array([1.0, 2.0, 3.0]))
    cli("certify", "--weights", tmp_path / "net.npz", "--write-proof", file)
    assert judged(file) == 0


@pytest.mark.parametrize("kind", ["run", "inside", "outside"])
def test_a_proof_of_other_matrices_than_the_weights_is_refused(
    tmp_path: Path, cli: Cli, kind: str
) -> None:
    """Hashes are right in both: only the matrices say of which net a proof is."""
    file, source = tmp_path / "proof.json", tmp_path / "net.npz"
    np.savez(source, W=np.array([[0.3, 0.4], [-0.2, 0.1]]))
    given = ("--weights", source, "--tau", 2, "--activation-place", kind)
    if kind == "run":
        source, given = tmp_path / "run", (tmp_path / "run",)
        store_run(source, model="svd-combo", solver="imex")
    cli("certify", *given, "--write-proof", file)
    for arguments in ((file,), (file, source)):
        said = cli("check", *arguments)
        assert said.code == 0
        assert "checked: the matrices of" in said.out
    cli.refuses("check", file, tmp_path / "nothing")
    forge(file, of_arrays=scaled("X" if kind != "inside" else "Z", 0.5))
    forge(file, lambda proof: proof["claims"].pop(1))
    assert judged(file) == 0
    assert "is not checked here" in verify(file)[-1]
    if kind == "inside":  # a file of matrices does not say this: a reader must see it
        assert "phi tanh and tau 2 to 2;" in verify(file)[-2]
    for arguments in ((file,), (file, source)):
        said = cli("check", *arguments)
        assert said.code == 1
        assert "refused: not the matrices of" in said.out


def test_constrained_net(tmp_path: Path) -> None:
    field = Subnetwork(Symmetric("tanh"), 6)
    weights = tmp_path / "weights"
    weights.write_bytes(b"")
    write_proof(tmp_path / "p.json", field, certify(field, dt=0.03), weights)
    assert judged(tmp_path / "p.json") == 0
