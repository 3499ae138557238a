"""A search of settings, `ctrnn sweep`: a YAML file says which, docs/howto/sweep.md, and Optuna the next.

What a trial tries depends on its number and, if bayesian, on earlier scores. A sweep is a folder:
sweep.yaml, Optuna's journal, and a run folder for each trial and seed. Whoever sees it takes part: a
trial that has not ended and whose lock is free was left by a process that was killed.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import yaml
from filelock import FileLock
from pydantic import Field

from ctrnn_assembly.errors import ConfigError, CtrnnError, TrainingError, check_known
from ctrnn_assembly.reproduction.results import means
from ctrnn_assembly.settings import Part, parsed
from ctrnn_assembly.training.config import TrainConfig, difference, make_config, read_yaml, recipe
from ctrnn_assembly.training.fit import make_fabric, trained
from ctrnn_assembly.training.run import Run, RunBusyError, locked, read_summary, refusing, write

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
except ModuleNotFoundError:
    fix = "Use pip install 'ctrnn-assembly[sweep]'"
    raise ConfigError(f"a sweep needs Optuna, which is not installed. {fix}.") from None

Value = bool | int | float | str | None
SAMPLERS: dict[str, Callable[[Any, int], Any]] = {  # of a sweep and the number of a trial
    "grid": lambda sweep, number: optuna.samplers.GridSampler(sweep.search, seed=0),
    "random": lambda sweep, number: optuna.samplers.RandomSampler(seed=number),
    "bayesian": lambda sweep, number: optuna.samplers.TPESampler(seed=number),
}


class Sweep(Part):
    """What the file says."""

    recipe: str | None = None
    settings: dict[str, Any] = Field({})
    search: dict[str, list[Value] | dict[str, float | bool]] = Field(min_length=1)
    sampler: Literal["grid", "random", "bayesian"] = "bayesian"
    trials: int | None = Field(None, ge=1)
    seeds: int = Field(1, ge=1)

    @property
    def count(self) -> int:
        whole = math.prod(map(len, self.search.values())) if self.sampler == "grid" else 20
        return min(self.trials or whole, whole) if self.sampler == "grid" else self.trials or whole

    def config(self, chosen: dict[str, Any], seed: int = 0) -> TrainConfig:
        """Of the run of a trial with its first seed, or a later one."""
        base = recipe(self.recipe) if self.recipe else {}
        config = make_config({"threads": 1}, base, self.settings, chosen)
        return config.model_copy(update={"seed": config.seed + seed})

    def dimensions(self) -> dict[str, Any]:
        """Of each setting the kind and range that Optuna chooses in; a ConfigError for what is none."""
        found = dict[str, Any]()
        for name, given in self.search.items():
            check_known("search", name, TrainConfig.model_fields)
            annotation = TrainConfig.model_fields[name].annotation
            whole = int in (annotation, *get_args(annotation))
            listed = isinstance(given, list)
            kind = "categorical" if listed else "int" if whole else "float"
            values: Any = {"choices": given} if listed else given
            try:
                if self.sampler == "grid" and not listed:
                    raise ValueError("a grid has lists only.")
                getattr(optuna.distributions, f"{kind.title()}Distribution")(**values)
                found[name] = kind, values
            except (TypeError, ValueError) as error:
                must = "must be a list, or low and high with log or step"
                raise ConfigError(f"search: {name} {must}; got {given!r}: {error}") from None
        return found

    def first(self) -> TrainConfig:
        """Of the first values; a ConfigError if they cannot be, or another one beside them."""
        self.dimensions()
        ends = {k: x if isinstance(x, list) else [x["low"], x["high"]] for k, x in self.search.items()}
        first = {name: values[0] for name, values in ends.items()}
        for name, values in ends.items():
            for value in values:
                self.config(first | {name: value})
        return self.config(first)


class Trials:
    """The sweep of a file, in a folder; a ConfigError if it cannot be, or was begun there as another."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.sweep, self.folder = parsed(Sweep, read_yaml(file), str(file)), folder
        self.first, self.stored = self.sweep.first(), folder / "sweep.yaml"
        if self.stored.exists():
            begun = parsed(Sweep, read_yaml(self.stored), str(self.stored))
            if other := difference(begun, self.sweep, {"trials"}):
                what = f"{folder} was begun with other settings ({other})"
                raise ConfigError(f"{what}. Use another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock")  # while trials begin and end
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        how: Any = {"study_name": "sweep", "direction": "maximize", "load_if_exists": True}
        with self.lock, refusing(f"{folder}/journal.log is damaged", "Use an intact copy."):
            self.storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
            self.study = optuna.create_study(storage=self.storage, **how)

    def place(self, number: int) -> Path:
        return self.folder / f"trial-{number:03}"

    def train(self, say: Callable[[str], None]) -> None:
        """Take part until no trial is left; one that diverges or loses its certificate has failed."""
        Run(None, self.first).build()  # without its data, or its device, every trial would fail
        make_fabric(self.first)
        write(self.stored, yaml.safe_dump(self.sweep.model_dump(), sort_keys=False))
        while True:
            with ExitStack() as held:
                if (trial := self.claim(held)) is None:
                    return
                outcome: dict[str, Any] = {"state": optuna.trial.TrialState.FAIL}
                say(f"trial {trial.number}: {', '.join(f'{k} {x}' for k, x in trial.params.items())}")
                try:
                    outcome = {"values": self.score(trial, say)}
                except CtrnnError as error:  # ends a trial, not the sweep
                    trial.set_user_attr("reason", str(error))
                    say(f"trial {trial.number} failed: {error}")
                with self.lock:
                    self.study.sampler = optuna.samplers.RandomSampler()  # a grid's would stop Optuna
                    self.study.tell(trial.number, **outcome)

    def claim(self, held: ExitStack) -> "optuna.Trial | None":
        """A trial that was left behind, or a new one, with its lock in `held`; None if none is left."""
        with self.lock:
            trials = self.study.get_trials()
            left = [one.number for one in trials if not one.state.is_finished()]
            new = [len(trials)] * (len(trials) < self.sweep.count)
            for number in [*left, *new]:
                with suppress(RunBusyError):
                    held.enter_context(locked(self.place(number)))
                    self.study.sampler = SAMPLERS[self.sweep.sampler](self.sweep, number)
                    trial = self.begun(number) if number in left else self.study.ask()
                    for name, (kind, values) in self.sweep.dimensions().items():
                        getattr(trial, f"suggest_{kind}")(name, **values)  # what was chosen before stays
                    return trial
        return None

    def begun(self, number: int) -> "optuna.Trial":
        """A trial that another process has left."""
        known = self.storage.get_study_id_from_name(self.study.study_name)
        found = self.storage.get_trial_id_from_study_id_trial_number(known, number)
        return optuna.Trial(self.study, found)

    def score(self, trial: optuna.Trial, say: Callable[[str], None]) -> float:
        """Train the seeds of a trial that are not trained yet; the mean of what validation gave."""
        scores = []
        for seed in range(self.sweep.seeds):
            config, place = self.sweep.config(trial.params, seed), self.place(trial.number)
            found = trained(config, place / f"seed-{seed}", report=say)
            scores.append(found["val_accuracy"] if found["val_r2"] is None else found["val_r2"])
        if None in scores:
            raise TrainingError("validation gave no score: nothing is held out, or all values are one.")
        return fmean(scores)

    def rows(self) -> list[dict[str, Any]]:
        """The trials as plain values, the best first, of which alone the test is told."""
        rows, trials = list[dict[str, Any]](), self.study.get_trials()
        trials.sort(key=lambda one: math.inf if one.value is None else -one.value)
        for trial in trials:
            place, state = self.place(trial.number), trial.state.name.lower()
            row = {"trial": trial.number, "state": state, "score": trial.value} | trial.params
            with refusing(f"a summary.json in {place} is damaged", "Use an intact copy."):
                runs = (read_summary(place / f"seed-{seed}") for seed in range(self.sweep.seeds))
                done = [run for run in runs if run is not None]
                row |= trial.user_attrs | {"runs": len(done)} | means(done, "val")
                rows.append(row if rows or trial.value is None else row | means(done))
        return rows

    def importance(self) -> dict[str, float]:
        """The share of the score's variance that each setting explains, by fANOVA; none if it is 0."""
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        with suppress(RuntimeError):
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {}
