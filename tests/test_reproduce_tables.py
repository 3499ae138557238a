"""The READMEs hold what `experiments/tables.py` makes of the results, and nothing else."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.reproduction.experiments import Job, load_experiment
from ctrnn_assembly.reproduction.results import keep_result, read_results

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    sys.path.append(str(ROOT / "experiments"))  # where a script finds `keep`
    spec = importlib.util.spec_from_file_location("tables", ROOT / "experiments" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["experiments/README.md", "README.md"])
def test_the_committed_tables_are_those_of_the_results(tables: ModuleType, name: str) -> None:
    text, made = tables.tabulated(name)
    assert text == made, "run `python experiments/tables.py`"


def store(results: Path, name: str, row: str, seed: int, accuracy: float, **more: object) -> None:
    """A result of an experiment as a run would leave it."""
    experiment = load_experiment(name)
    job = Job(experiment, *experiment.matching([row]), seed)
    proof = {"certified": True, "rate": 0.25009, "discrete": {"certified": False}, "reasons": []}
    result = {
        "experiment": name, "row": row, "fast": False, "seed": seed, "commit": "0123456789abcdef",
        "task": "digits", "hardware": "a test", "threads": 1, "parameters": 1234, "seconds": 100.0,
        "val_accuracy": accuracy, "measures": experiment.measures(),
        "test_accuracy": accuracy, "best_epoch_accuracy": accuracy, "final_epoch_accuracy": accuracy,
        "certificate_initial": proof, "certificate": proof,
        "config": job.config().model_dump(mode="json"), **more,
    }  # fmt: skip
    keep_result(results, job, result)


def test_rows_that_were_run_show_ours_and_the_others_say_so(tables: ModuleType, tmp_path: Path) -> None:
    assert "japanese-vowels" in tables.all_tables(tmp_path)
    assert "digits, svd-combo | - | not yet run (n=-)" in tables.highlights(tmp_path)
    store(tmp_path, "japanese-vowels", "adadiag-gated", 0, 0.97)
    store(tmp_path, "japanese-vowels", "adadiag-gated", 1, 0.99)
    store(tmp_path, "japanese-vowels", "svd-combo", 0, 0.95)
    made = tables.all_tables(tmp_path)
    row = next(line for line in made.splitlines() if line.startswith("| adadiag-gated |"))
    assert "97.77 ± 0.25 (final, n=3); 98.15 ± 0.21 (best, n=3) | 98.00 ± 1.41 | 2 |" in row
    assert "| yes | yes | 0.25 | no | 1,234 | 1.67 min |" in row
    assert (
        "| lstm | - | 96.55 (best, n=3), with a readout that was never trained | not yet run |" in made
    )
    assert f"3 of {len(load_experiment('japanese-vowels').jobs())} runs" in made
    assert "| svd-combo | digits | - | 95.00 | 1 |" in made


def test_differences_are_paired_over_common_seeds(tables: ModuleType, tmp_path: Path) -> None:
    for seed, (one, other) in enumerate([(0.90, 0.91), (0.92, 0.94), (0.94, 0.97)]):
        store(tmp_path, "deep-digits", "adadiag-4", seed, one)
        store(tmp_path, "deep-digits", "lru-4", seed, other)
    store(tmp_path, "deep-digits", "lru-4", 4, 0.1)  # of a seed that the other row lacks
    store(tmp_path, "deep-digits", "svd-combo", 1, 0.95)
    made = tables.all_tables(tmp_path)
    # 1, 2 and 3 points: 2 +- t_{.975, 2} / sqrt 3 = 4.3027 / 1.7321
    assert "| +2.00 ± 2.48 (n=3) |" in next(x for x in made.splitlines() if x.startswith("| lru-4"))
    assert "| 95.00 | 1 | - |" in next(x for x in made.splitlines() if x.startswith("| svd-combo |"))
    assert "| 92.00 ± 2.00 | 3 | - |" in made
    assert "| paired with adadiag-4, 95 % |" in made


def test_solvers_and_exponents_get_tables_of_their_own(tables: ModuleType, tmp_path: Path) -> None:
    step = {"discrete": {"certified": True}}
    swapped = [{"name": "dopri5", "test_accuracy": 0.5, "certificate": step}]
    store(tmp_path, "solver-swap", "svd-combo", 0, 0.9, evaluate=swapped)
    found = [
        {"epoch": 0, "certified": True, "rate": 0.12509,
         "step": -0.5, "step_range": [-0.75, -0.25], "flow": -1.0, "flow_range": [-1.5, -0.5]},
        {"epoch": 1, "certified": False, "rate": -3.0,
         "step": None, "step_range": None, "flow": 1.0, "flow_range": [1.0, 1.0]},
    ]  # fmt: skip
    store(tmp_path, "lyapunov", "sparse-combo", 0, 0.9, lyapunov=found)
    made = tables.all_tables(tmp_path)
    assert "50.00 (yes)" in made
    assert "| 0 | -0.5000 (-0.750 to -0.250) | -1.0000 (-1.500 to -0.500) | 0.125 |" in made
    assert "| 1 | overflow | 1.0000 (1.000 to 1.000) | no |" in made
    gave_up = [{"name": "dopri5", "test_accuracy": None, "reason": "no step is small enough"}]
    store(tmp_path, "solver-swap", "svd-combo", 1, 0.9, evaluate=gave_up)
    assert "50.00 (yes), 1 failed" in tables.all_tables(tmp_path)


def test_a_result_of_other_measures_is_refused(tables: ModuleType, tmp_path: Path) -> None:
    store(tmp_path, "lyapunov", "sparse-combo", 0, 0.9, measures={"lyapunov": [0, 1]})
    with pytest.raises(ConfigError, match="other epochs to measure exponents of"):
        tables.all_tables(tmp_path)


def test_every_stored_result_is_of_an_experiment_as_it_is_now() -> None:
    results = ROOT / "experiments" / "results"
    for folder in (path for path in results.iterdir() if path.is_dir()):
        files = {path.name for path in folder.glob("*.json")}
        assert len(read_results(results, load_experiment(folder.name))) == len(files), folder


def test_text_around_the_markers_stays(tables: ModuleType) -> None:
    begin, end = (f"<!-- experiments/tables.py, b: {edge} -->" for edge in ("begin", "end"))
    assert tables.between(f"before\n{begin}\nold\n{end}\nafter\n", "new", "x", "b") == (
        f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    )
    with pytest.raises(SystemExit, match="must hold the lines"):
        tables.between("nothing", "new", "x", "b")


def test_the_table_of_speed_is_made_of_the_newest_measurement(
    tables: ModuleType, tmp_path: Path
) -> None:
    assert tables.speed(tmp_path) == "Not measured yet."

    row = {"work": "c5", "size": "2 x 4", "min_s": 0.1, "share": 0.5, "limit": "calls"}
    rows = [
        row | {"name": name, "median_s": x, "times": x / 0.2}
        for name, x in (("ours", 0.2), ("scn", 0.5))
    ]
    run = {"hardware": "a toaster", "versions": {"torch": "9"}, "rounds": 7}
    for date, threads in (("2026-01-01", 1), ("2026-01-02", 1), ("2026-01-02", 2)):
        content = run | {"date": date, "threads": threads, "rows": rows if threads == 1 else rows[:1]}
        file = tmp_path / f"{date}-bench-{threads}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
    made = tables.speed(tmp_path)
    assert "1 thread(s) of a toaster, torch 9, 2026-01-02" in made
    assert "2 thread(s) of a toaster, torch 9, 2026-01-02" in made
    assert "2026-01-01" not in made
    assert "| c5 | 2 x 4 | ours | 200.00 | 100.00 | 1.00 |" in made
    assert made.count("|  |  | scn | 500.00 | 100.00 | 2.50 |") == 1
    assert "scn" not in tables.speed(tmp_path, hidden=("scn",))
