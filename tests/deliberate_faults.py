"""Does a test fail where the certificates are broken on purpose?

python tests/deliberate_faults.py [--only 3]

Each fault changes one line of a copy of the tree, in which the tests named beside it must then fail. A
fault that no test notices, or whose line is gone, ends the script with status 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CERTIFICATES = "src/ctrnn_assembly/certificates"
STEPS = "tests/test_certificates_steps.py"
ROUNDING = "tests/test_certificates_rounding.py"
GIVEN = "tests/test_given.py", "-k", "uncertainty"
FORGETTING = "tests/test_dissipation.py", "-k", "envelope"
WITNESS, REFUTED = "../witness.py", ("tests/test_witness.py", "-m", "not slow", "-k")
TANGENT, EXACT, DIGITS, KINK = "tangent", "exact_arithmetic", "50_digits_are_enclosed", "reach_of_a_kink"


class Fault(NamedTuple):
    """`old` is what a line holds, `new` what is put in its place; `tests` are files and -k."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = [
    Fault("modules.py", "return self.phi.g * rounding", "return 0.5 * self.phi.g * rounding", GIVEN),
    Fault("interconnection.py", "K, error + moved,", "K, error,", GIVEN),
    Fault("dissipation.py", "passed / math.sqrt(low)", "0.6 * passed / math.sqrt(low)", FORGETTING),
    Fault("lmi.py", "2 * off + dt * gram + sums)", "0.0)", (STEPS, "-k", "rounded")),
    Fault(
        "steps.py",
        "+ share * (float(system.A.norm())",
        "+ 0 * (float(system.A.norm())",
        (STEPS, "-k", "rounded"),
    ),
    Fault(
        "steps.py",
        "off = dt * whole.K_error +",
        "off = 0 * whole.K_error +",
        (STEPS, "-k", "rounded"),
    ),
    Fault(
        "steps.py",
        "(high - low) / 2 + whole.edge_norm",
        "(high - low) / 2",
        (STEPS, "-k", "edge_counts"),
    ),
    Fault("lmi.py", "Z[:n, :n] -= 2 * symmetric_part", "Z[:n, :n] -= 1.9 * symmetric_part", (STEPS,)),
    Fault(
        "steps.py",
        "inverse(Ball((eye - scaled)",
        "inverse(Ball((eye - 1.1 * scaled)",
        (STEPS,),
    ),
    Fault(
        "steps.py",
        "(whole.norm + spread) * size / 2",
        "(whole.norm + spread) * size / 20",
        (STEPS, "-k", "promised"),
    ),
    Fault("rounding.py", "shift = error * scale + 2 *", "shift = 0 * error + 0 *", (ROUNDING,)),
    Fault("rounding.py", "bound = (guess + slack + error)", "bound = (guess + slack)", (ROUNDING,)),
    Fault(
        "interconnection.py", "gain[:, None] * Z, A_error", "0.5 * gain[:, None] * Z, A_error", (STEPS,)
    ),
    Fault(
        "lmi.py",
        "Y @ Y.mT / 4\n        sums",
        "Y @ Y.mT / 5\n        sums",
        ("tests/test_certificates.py",),
    ),
    Fault(WITNESS, "(J_off + bend * radius)", "J_off", (*REFUTED, TANGENT)),
    Fault(WITNESS, "float(off.norm())", "0 * float(off.norm())", (*REFUTED, EXACT)),
    Fault(WITNESS, "(J, J_off + bend * eta", "(J, 0 * J_off + bend * eta", (*REFUTED, EXACT)),
    Fault(WITNESS, "J_off + bend * eta / (1 - q))", "J_off)", (*REFUTED, DIGITS)),
    Fault(WITNESS, "known and not kinked", "known", (*REFUTED, KINK)),
    Fault(WITNESS, "off + radius * w * steep_p)", "off)", (*REFUTED, KINK)),
    Fault(WITNESS, "ACTIVATIONS.get(one.name) is one and", "", (*REFUTED, "unknown_curvature")),
    Fault(WITNESS, "(J_off + 16 *", "(0 * J_off + 16 *", (*REFUTED, "no_mode_grows")),
    Fault(WITNESS, "v.norm() if beyond and", "v.norm() if", (*REFUTED, "substeps or focus")),
    Fault(WITNESS, "dt / known.substeps", "dt", (*REFUTED, "substeps")),
    Fault(WITNESS, "{runs} {own}", "{own}", (*REFUTED, "hash")),
    Fault(WITNESS, "known.dt, known.solver, known.substeps,", "", (*REFUTED, "hash")),
    Fault(WITNESS, "or not start > APART * scale", "", (*REFUTED, "one_fixed_point")),
    *(
        Fault("verifier.py", old, new, ("tests/test_proof_files.py", "-k", f"not slow and ({tests})"))
        for old, new, tests in (
            ("off = gamma(k) * (a @ b) +", "off = 0 * (a @ b) +", "balls"),
            ("a @ other.off + self.off", "self.off", "balls"),
            (" + self.off @ (b + other.off)", "", "balls"),
            ("self.off @ (b + other.off)", "self.off @ b", "enclosed"),
            ("other.off + UNIT * abs(mid)", "other.off", "balls"),
            (" + 2 * UNIT * abs(mid)", "", "balls"),
            ("self.off * abs(numbers)", "0 * self.off", "balls"),
            ("r + 2 * n * g / (1 - g) * diagonal + 1e-200", "r", "singular"),
            ("-= r + 2", "-= 2", "radius"),
            ("rho / (1 - rho) * abs(Y.mid).max(0)", "0.0", "enclosed"),
            ("range(21, 1, -1)", "range(9, 1, -1)", "enclosed"),
            ("J * -1.0)", "J * -1.1)", "nothing_better"),
            ("@ K * -dt", "@ K * (-0.9 * dt)", "nothing_better"),
            ('elif solver != ("euler" if dt else "flow")', "elif False", "forged"),
        )
    ),
]


def is_found(fault: Fault, folder: Path) -> bool:
    """Whether the tests fail in a copy of the tree with this fault."""
    names = shutil.ignore_patterns(".git", "__pycache__", "results", ".path")
    copy = Path(shutil.copytree(ROOT, folder / "tree", ignore=names))
    file = copy / CERTIFICATES / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.file} must hold {fault.old!r} once; got {text.count(fault.old)} times."
        )
    file.write_text(text.replace(fault.old, fault.new))
    path = folder / "path"
    path.mkdir()
    for name, source in (("ctrnn_assembly", "src/ctrnn_assembly"), ("ctrnn_cli", "cli")):
        (path / name).symlink_to(copy / source)
    run = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", *fault.tests]
    done = subprocess.run(run, cwd=copy, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout.decode()[-2000:])
    return done.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", type=int, help="number of the one fault to try")
    only, missed = parser.parse_args().only, 0
    for k, fault in enumerate(FAULTS):
        if only in (None, k):
            with tempfile.TemporaryDirectory() as folder:
                found = is_found(fault, Path(folder))
            missed += not found
            print(f"{k:2} {'found ' if found else 'MISSED'} {fault.file}: {fault.new!r}", flush=True)
    print(f"{missed} missed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
