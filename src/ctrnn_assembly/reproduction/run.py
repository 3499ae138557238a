"""The runs of experiments, each in a process of its own: train, measure, write the result.

The result is the summary of the run folder, with what the experiment measures besides. A finished run
folder is not trained again, an unfinished one goes on from its last epoch. A run that stops because it
diverged, or lost its certificate, is a result too.
"""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.errors import ConfigError, ContractionError, CtrnnError, SolverError, TrainingError
from ctrnn_assembly.reproduction.experiments import Evaluation, Job, difference
from ctrnn_assembly.reproduction.results import checked_result, keep_result
from ctrnn_assembly.training.batches import measure
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.provenance import provenance
from ctrnn_assembly.training.run import Run, locked, read_config, read_summary, read_table, run_record

SAMPLES, FINER = 16, 10  # test sequences, and parts of a step, that exponents are measured with
PATIENCE = 60  # seconds for a run to end after it was asked to


@dataclasses.dataclass(frozen=True)
class Places:
    """Where run folders, results and data are."""

    runs: Path
    results: Path
    data_dir: str | None = None

    def log(self, job: Job) -> Path:
        return self.runs / f"{job.path}.log"


def run_all(
    jobs: Sequence[Job], places: Places, *, at_once: int, say: Callable[[str], None]
) -> tuple[list[str], bool]:
    """Run what has no result yet; Ctrl-C and SIGTERM end the runs after their last whole epoch.

    Returns a sentence for each failure, and whether it was interrupted; `say` is told of every start
    and end.
    """
    done = [job for job in jobs if (places.results / f"{job.path}.json").exists()]
    for job in done:
        checked_result(places.results, job)
    waiting = [job for job in jobs if job not in done]
    say(f"{len(done)} of {len(jobs)} runs have their result")
    on, failures = dict[Job, SpawnProcess](), list[str]()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or on:
            while waiting and len(on) < at_once:
                job = waiting.pop(0)
                on[job] = get_context("spawn").Process(target=alone, args=(job, places))
                os.environ["OMP_NUM_THREADS"] = str(job.config().threads or os.cpu_count())
                on[job].start()
                say(f"{job.path}: started, {len(waiting)} wait; {places.log(job)}")
            time.sleep(0.1)
            for job in [job for job, process in on.items() if not process.is_alive()]:
                code = on.pop(job).exitcode
                if code == 0:
                    result = checked_result(places.results, job)
                    accuracy = f"test accuracy {100 * result.get('test_accuracy', 0):.2f} %"
                    say(f"{job.path}: {result.get('stopped') or accuracy}")
                    continue
                said = places.log(job).read_text(encoding="utf-8", errors="replace").strip()
                reason = said.rpartition("\n")[2].removeprefix("error: ") or f"exit code {code}"
                say(f"{job.path}: failed: {reason}")
                failures.append(f"{job.path}: {reason}")
    except KeyboardInterrupt:
        # What they saved is whole whenever they end.
        for process in on.values():
            process.terminate()
        until = time.monotonic() + PATIENCE
        for process in on.values():
            process.join(max(0.1, until - time.monotonic()))
            process.kill()
        return failures, True
    finally:
        signal.signal(signal.SIGTERM, before)
    return failures, False


def alone(job: Job, places: Places) -> None:
    """A run, in a process of its own, which talks to a log beside the run folder."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the process that started this one, which passes it on once
    places.log(job).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(places.log(job), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run_job(job, places)
    except (CtrnnError, OSError) as error:
        sys.exit(f"error: {error}")


def run_job(job: Job, places: Places) -> None:
    """Train if that is not done, as `trained`; measure, and write the result."""
    run, data_dir, experiment = places.runs / job.path, places.data_dir, job.experiment
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
    keep_result(places.results, job, named | found | {"measures": experiment.measures()})


def trained(config: TrainConfig, run: Path, **how: Any) -> dict[str, Any]:
    """The summary of the run of this folder, which is trained if it is not there, or goes on.

    ConfigError if the folder holds one with other settings, RunBusyError if another process has it.
    """
    with locked(run):
        resume = (run / "config.yaml").exists()
        if resume and (other := difference(read_config(run), config)):
            what = f"{run} holds a run with other settings ({other})"
            raise ConfigError(f"{what}. Delete it, or use another folder.")
        return (resume and read_summary(run)) or fit(config, run, resume=resume, **how)


def evaluation(one: Evaluation, path: Path, data_dir: str | None) -> dict[str, Any]:
    """The test accuracy of the selected weights, and what is proven of them, under other settings."""
    run = Run.open(path, data_dir=data_dir, **one.settings)
    result = {
        "name": one.name,
        **{key: getattr(run.config, key) for key in ("solver", "dt", "substeps")},
    }
    try:
        found = measure(run.model, run.task, run.task.load_test())["accuracy"]
        return result | {"test_accuracy": found, "certificate": run.certificate.as_dict()}
    except (ConfigError, SolverError) as error:  # some models have Euler only; a solver may give up
        return result | {"test_accuracy": None, "reason": str(error)}


def exponents(epoch: int, path: Path, data_dir: str | None) -> dict[str, Any]:
    """Largest exponents, and certificate, of the weights after an epoch; 0 is before training.

    `step` is of the step that the net was trained with, `flow` of a step a tenth as long, under the same
    input: close to that of the differential equation. Each is the mean over test sequences, from the
    state 0 as in training; the first tenth of a sequence turns the tangent vector, and the rest of it is
    averaged over. The ranges are those over the sequences; None where the state overflows.
    """
    run = Run.open(path, data_dir=data_dir, initial=epoch == 0, epoch=epoch or None)
    certificate = run.certificate.as_dict()
    core = run.build(double=True).core
    inputs = run.inputs("test", SAMPLES)[0]
    found: dict[str, Any] = {"epoch": epoch}
    for name, finer in (("step", 1), ("flow", FINER)):
        u = inputs.repeat_interleave(finer, dim=1)
        found |= {name: None, f"{name}_range": None}
        with suppress(SolverError, ContractionError):
            own = lyapunov_exponents(
                core,
                u,
                u.new_zeros(len(u), core.state_size),
                k=1,
                dt=run.config.dt / finer,
                steps=u.shape[1] - u.shape[1] // 10,
                transient=u.shape[1] // 10,
                generator=torch.Generator().manual_seed(0),
            ).per_trajectory[:, 0]
            if own.isfinite().all():
                found |= {name: own.mean().item(), f"{name}_range": [own.min().item(), own.max().item()]}
    return found | {key: certificate.get(key) for key in ("certified", "rate", "discrete")}
