"""What an epoch of published nets takes on this machine: training steps of all of them, interleaved.

    python experiments/epochs.py --data-dir DIR [EXPERIMENT/ROW ...]

By default the three runs of the reproducibility study, whose hours it gives, and Sparse Combo beside
AdaDiag of `adadiag2025-table1`, whose seconds an epoch the paper gives. Every round times one batch of
each, forward, backward and optimiser, in a new order; an epoch is the median of the rounds times its
batches, without validation and certificate. Leaves results/DATE-epochs.json.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from keep import keep, shown

from ctrnn_assembly.benchmark.contestants import Workload
from ctrnn_assembly.benchmark.measure import Timing, schedule
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.errors import CtrnnError
from ctrnn_assembly.reproduction.experiments import load_experiment
from ctrnn_assembly.training.batches import Batches
from ctrnn_assembly.training.fit import Training, denormals_flushed, make_fabric, train_step
from ctrnn_assembly.training.provenance import provenance
from ctrnn_assembly.training.run import Run
from ctrnn_cli.shared import Column, console, table

ROWS = [f"reproducibility-study/{task}" for task in ("smnist", "psmnist", "scifar10")]
ROWS += [f"adadiag2025-table1/{net}-smnist-{c}" for c in ("c5", "c20") for net in ("scn-3", "tanh")]
# Hours of a whole run (P5000), or seconds of an epoch, as reported; of which C is not said.
REPORTED = {name: f"{hours} h" for name, hours in zip(ROWS, (28, 24, 36), strict=False)}
REPORTED |= {name: "185 s" if "scn" in name else "206 s" for name in ROWS[3:]}
COLUMNS = [
    Column("row", "row"),
    Column("step_s", "s a step", ".3f"),
    Column("min_s", "least", ".3f"),
    Column("steps", "steps", "d"),
    Column("epoch_s", "s an epoch", ".0f"),
    Column("epochs", "epochs", "d"),
    Column("hours", "h in all", ".1f"),
    Column("reported", "reported"),
]


def contestant(name: str, data_dir: str | None) -> tuple[dict[str, Any], Callable[[], object]]:
    """What is known of a row, and a training step of it."""
    experiment, _, row = name.partition("/")
    config = load_experiment(experiment).jobs([row], seeds=[0])[0].config(data_dir)
    run = Run(None, config, initial=True)
    training = Training(config, make_fabric(config), run.task, run.build())
    training.set_up()
    batches = Batches(run.task, run.task.train, config.batch_size, seed=config.seed)
    steps = iter(batches)
    known = {"row": name, "task": run.task_as_used, "model": config.model, "epochs": config.epochs}
    known |= {"batch": config.batch_size, "steps": len(batches)}
    return known, lambda: train_step(training, next(steps))


def measured(names: list[str], rounds: int, data_dir: str | None) -> list[dict[str, Any]]:
    found = [contestant(name, data_dir) for name in names]
    timings = [Timing(known, Problem(), Workload(step)) for known, step in found]
    with denormals_flushed():
        for timing in timings:
            timing.warm()
        for timing in schedule(timings, rounds):
            timing.seconds.append(timing.time())
    rows = []
    for (known, _), timing in zip(found, timings, strict=True):
        epoch, least = timing.median * known["steps"], min(timing.seconds)
        times = {"step_s": timing.median, "min_s": least, "epoch_s": epoch}
        times["hours"] = epoch * known["epochs"] / 3600
        rows.append(known | times | {"reported": REPORTED.get(known["row"], "")})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="EXPERIMENT/ROW", default=ROWS)
    parser.add_argument("--data-dir", help="default: CTRNN_DATA_DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    result = provenance() | {"threads": settings.threads}
    try:
        result["rows"] = measured(settings.rows, settings.rounds, settings.data_dir)
    except CtrnnError as wrong:
        raise SystemExit(str(wrong)) from None
    result["table"] = shown(result["rows"], COLUMNS)
    console().print(table(result["table"], title="Training steps, interleaved"))
    print(keep("epochs", result))
