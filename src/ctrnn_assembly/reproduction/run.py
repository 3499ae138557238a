"""The runs of experiments, shared by every process that is started: train, measure, write the result.

The result is the summary of the run folder, with what the experiment measures besides. A run that
diverged, or lost its certificate, is a result too.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import format_exc
from typing import Any

import torch

from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.errors import ContractionError, CtrnnError, SolverError, TrainingError
from ctrnn_assembly.reproduction.experiments import Evaluation, Job
from ctrnn_assembly.reproduction.results import checked_result, keep_result
from ctrnn_assembly.training.fit import trained
from ctrnn_assembly.training.provenance import provenance
from ctrnn_assembly.training.run import Run, RunBusyError, locked, read_table, run_record, write
from ctrnn_assembly.training.swap import swapped

SAMPLES, FINER = 16, 10  # test sequences, and parts of a step, that exponents are measured with


def run_all(
    jobs: Sequence[Job], runs: Path, results: Path, data_dir: str | None, say: Callable[[str], None]
) -> list[str]:
    """Run what has no result yet and no other process runs; a sentence for each failure."""
    paths = {job: results / f"{job.path}.json" for job in jobs}
    done, failures = [job for job, path in paths.items() if path.exists()], list[str]()
    for job in done:
        checked_result(results, job)
    say(f"{len(done)} of {len(jobs)} runs have their result")
    for job in (job for job, path in paths.items() if not path.exists()):  # by now, too
        say(f"{job.path}: starts")
        try:
            found = run_job(job, runs, results, data_dir)
        except RunBusyError as error:
            say(f"{job.path}: {error}")
        except (CtrnnError, OSError) as error:
            say(f"{job.path}: failed: {error}")
            failures.append(f"{job.path}: {error}")
        except Exception as error:  # nobody's mistake but ours: the other runs go on
            write(file := runs / job.path / "traceback.txt", format_exc())
            failures.append(f"{job.path}: {type(error).__name__}: {error}. See {file}, and report it.")
            say(failures[-1])
        else:
            accuracy = f"test accuracy {100 * (found.get('test_accuracy') or 0):.2f} %"
            say(f"{job.path}: {found.get('stopped') or accuracy}")
    return failures


def run_job(job: Job, runs: Path, results: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Train if that is not done, as `trained`; measure, and write the result."""
    run, experiment = runs / job.path, job.experiment
    config, command = job.config(data_dir), job.command(data=data_dir is not None)
    with locked(run):
        try:
            found = trained(config, run, command=command)
            if experiment.evaluate:
                found["evaluate"] = [evaluation(one, run, data_dir) for one in experiment.evaluate]
            if experiment.lyapunov:
                epochs = [epoch for epoch in experiment.lyapunov if epoch <= config.epochs]
                found["lyapunov"] = [exponents(epoch, run, data_dir) for epoch in epochs]
        except TrainingError as error:
            found = {
                **provenance(command=command, seed=config.seed, device=config.device),
                "task": config.task,
                "model": config.model,
                "stopped": str(error).replace(str(run), "RUN"),
                **run_record(config, read_table(run / "metrics.csv")),
            }
    named = {"experiment": experiment.name, "row": job.row.name, "fast": job.fast}
    keep_result(results, job, named | found | {"measures": experiment.measures()})
    return found


def evaluation(one: Evaluation, path: Path, data_dir: str | None) -> dict[str, Any]:
    """The test accuracy of the selected weights, and what is proven of them, under other settings."""
    found = swapped(run := Run.open(path, data_dir=data_dir, **one.settings))
    result = {key: getattr(run.config, key) for key in ("solver", "dt", "substeps")}
    result |= {"name": one.name, "test_accuracy": found.measures.get("accuracy")}
    if found.failure:  # some models have Euler only; a solver may give up
        return result | {"reason": found.failure}
    return result | {"certificate": run.certificate.as_dict()}


def exponents(epoch: int, path: Path, data_dir: str | None) -> dict[str, Any]:
    """Largest exponents, and certificate, of the weights after an epoch; 0 is before training.

    `step` is of the step that the net was trained with, `flow` of a step a tenth as long. Means and
    ranges are over test sequences from the state 0, without their first tenth; None on overflow.
    """
    run = Run.open(path, data_dir=data_dir, initial=epoch == 0, epoch=epoch or None)
    certificate = run.certificate.as_dict()
    core = run.build(double=True).core
    inputs = run.inputs("test", SAMPLES)[0]
    found: dict[str, Any] = {"epoch": epoch}
    for name, finer in (("step", 1), ("flow", FINER)):
        u = inputs.repeat_interleave(finer, dim=1)
        start, tenth = u.new_zeros(len(u), core.state_size), u.shape[1] // 10
        how: Any = {"dt": run.config.dt / finer, "steps": u.shape[1] - tenth, "transient": tenth}
        how["generator"] = torch.Generator().manual_seed(0)
        found |= {name: None, f"{name}_range": None}
        with suppress(SolverError, ContractionError):
            own = lyapunov_exponents(core, u, start, k=1, **how).per_trajectory[:, 0]
            if own.isfinite().all():
                found |= {name: own.mean().item(), f"{name}_range": [own.min().item(), own.max().item()]}
    return found | {key: certificate.get(key) for key in ("certified", "rate", "discrete")}
