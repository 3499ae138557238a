"""What an epoch of published nets takes on this machine: training steps of all of them, interleaved.

    python experiments/epochs.py --data-dir DIR

The three runs of the reproducibility study, whose hours it gives, and Sparse Combo beside AdaDiag of
`adadiag2025-table1`, whose seconds an epoch the paper gives. Every round times one batch of each,
forward, backward and optimiser, in a new order; an epoch is the median of the rounds times its batches,
without validation and certificate. Leaves results/DATE-epochs.json.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from keep import finish

from ctrnn_assembly.benchmark.contestants import Workload
from ctrnn_assembly.benchmark.measure import ROUNDS, Timing, schedule
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.errors import CtrnnError
from ctrnn_assembly.reproduction.experiments import load_experiment
from ctrnn_assembly.training.batches import Batches
from ctrnn_assembly.training.fit import Training, denormals_flushed, make_fabric, train_step
from ctrnn_assembly.training.provenance import provenance
from ctrnn_assembly.training.run import Run
from ctrnn_cli.shared import Column

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


def prepared(name: str, data_dir: str | None) -> Timing:
    """A training step of a row, and what is known of it."""
    experiment, _, row = name.partition("/")
    config = load_experiment(experiment).jobs([row], seeds=[0])[0].config(data_dir)
    run = Run(None, config, initial=True)
    training = Training(config, make_fabric(config), run.task, run.build())
    training.set_up()
    batches = Batches(run.task, run.task.train, config.batch_size, seed=config.seed)
    steps = iter(batches)
    known = {"row": name, "task": run.task_as_used, "model": config.model, "epochs": config.epochs}
    known |= {"batch": config.batch_size, "steps": len(batches), "reported": REPORTED[name]}
    return Timing(known, Problem(), Workload(lambda: train_step(training, next(steps))))


def measured(timings: list[Timing]) -> Iterator[dict[str, Any]]:
    with denormals_flushed():
        for timing in timings:
            timing.warm()
        for timing in schedule(timings, ROUNDS):
            timing.seconds.append(timing.time())
    for timing in timings:
        known, epoch = timing.contestant, timing.median * timing.contestant["steps"]
        times = {"step_s": timing.median, "min_s": min(timing.seconds), "epoch_s": epoch}
        yield known | times | {"hours": epoch * known["epochs"] / 3600}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", help="default: CTRNN_DATA_DIR")
    data_dir = parser.parse_args().data_dir
    torch.set_num_threads(1)
    result = provenance()
    try:
        result["rows"] = [*measured([prepared(name, data_dir) for name in ROWS])]
    except CtrnnError as wrong:
        raise SystemExit(str(wrong)) from None
    finish("epochs", result, COLUMNS, "Training steps, interleaved")
