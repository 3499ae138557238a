"""How much noise on the inputs: five-fold cross-validation on the training file of JapaneseVowels.

    python experiments/cross_validate.py            # 10 to 20 minutes on one core

The net is that of tuned-adadiag in configs/japanese-vowels.yaml, at its last epoch; the test file is not
read. Leaves results/DATE-japanese-vowels-folds.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from keep import about, keep

from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.data.task import Split, stratified_folds
from ctrnn_assembly.reproduction.experiments import Job, load_experiment
from ctrnn_assembly.training.batches import Batches, evaluate
from ctrnn_assembly.training.config import TrainConfig, make_config
from ctrnn_assembly.training.fit import Training, make_fabric, train_epoch
from ctrnn_assembly.training.run import model_from

FOLDS = 5


def configuration(noise: float) -> TrainConfig:
    """Of tuned-adadiag, with this much noise."""
    experiment = load_experiment("japanese-vowels")
    (row,) = experiment.matching(["tuned-adadiag"])
    tuned = Job(experiment, row, 0).config()
    return make_config(tuned.model_dump(), {"input_noise": noise, "test_every_epoch": False})


def held_out(config: TrainConfig, task: Task, rest: Split, fold: Split) -> tuple[float, int]:
    """Summed cross-entropy and errors on a fold, after training on the rest."""
    part = replace(task, train=rest, val=fold)
    model = model_from(config, task.n_input, len(task.classes))
    train = Batches(part, rest, config.batch_size, seed=config.seed, noise=config.input_noise)
    training = Training(config, make_fabric(config), model)
    training.set_up()
    for training.epoch in range(config.epochs):
        train_epoch(training, train)
    loss, correct, count = evaluate(model, Batches(part, fold, len(fold))).tolist()
    return loss, round(count - correct)


def cross_validated(config: TrainConfig, task: Task) -> dict[str, Any]:
    """Mean loss and errors over the folds."""
    samples = task.train.joined(task.val)
    folds = torch.from_numpy(stratified_folds(samples.y.numpy(), FOLDS))
    found = []
    for k in range(FOLDS):
        rest, fold = (samples.take(where.nonzero().flatten()) for where in (folds != k, folds == k))
        found.append(held_out(config, task, rest, fold))
    return {
        "noise": config.input_noise,
        "loss": sum(loss for loss, _ in found) / len(samples),
        "errors": sum(errors for _, errors in found),
        "samples": len(samples),
    }


def main() -> None:
    """Compare amounts of noise, in standard deviations of each channel."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.8])
    torch.set_num_threads(1)
    runs = []
    for amount in parser.parse_args().noise:
        config = configuration(amount)
        runs.append(cross_validated(config, load_task(config.task)))
        print(runs[-1])
    print(keep("japanese-vowels-folds", {**about(__file__, seed=0), "folds": FOLDS, "runs": runs}))


if __name__ == "__main__":
    main()
