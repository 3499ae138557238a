"""How much noise on the inputs: five-fold cross-validation on the training file of JapaneseVowels.

    python experiments/cross_validate.py            # 10 to 20 minutes on one core

The net is that of tuned-adadiag in configs/japanese-vowels.yaml, at its last epoch; the test file is not
read. Noise is in standard deviations of each channel. Leaves results/DATE-japanese-vowels-folds.json.
"""

from dataclasses import replace
from typing import Any

import torch
from keep import about, keep

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.task import dealt
from ctrnn_assembly.reproduction.experiments import Job, load_experiment
from ctrnn_assembly.training.batches import Batches, evaluate
from ctrnn_assembly.training.config import TrainConfig, make_config
from ctrnn_assembly.training.fit import Training, make_fabric, train_epoch
from ctrnn_assembly.training.run import model_from

FOLDS = 5


def cross_validated(config: TrainConfig) -> dict[str, Any]:
    """Mean cross-entropy and errors over the folds, each after training on the rest."""
    task = load_task(config.task)
    samples, sums = task.train.joined(task.val), torch.zeros(3, dtype=torch.float64)
    for k in range(FOLDS):
        folds = dealt(samples.y.numpy(), FOLDS, {"val": (k,)})
        rest, fold = samples.take(folds["train"]), samples.take(folds["val"])
        part = replace(task, train=rest, val=fold)
        batches = Batches(part, rest, config.batch_size, seed=config.seed, noise=config.input_noise)
        model = model_from(config, task.n_input, len(task.classes))
        training = Training(config, make_fabric(config), part, model)
        training.set_up()
        for training.epoch in range(config.epochs):
            train_epoch(training, batches)
        sums += evaluate(model, Batches(part, fold, len(fold)))
    loss, correct, count = sums.tolist()
    return {
        "noise": config.input_noise,
        "loss": loss / count,
        "errors": round(count - correct),
        "samples": len(samples),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    experiment = load_experiment("japanese-vowels")
    (row,) = experiment.matching(["tuned-adadiag"])
    tuned = Job(experiment, row, 0).config().model_dump()
    runs = []
    for noise in (0.0, 0.2, 0.4, 0.8):
        config = make_config(tuned, {"input_noise": noise, "test_every_epoch": False})
        runs.append(cross_validated(config))
        print(runs[-1])
    print(keep("japanese-vowels-folds", {**about(__file__, seed=0), "folds": FOLDS, "runs": runs}))
