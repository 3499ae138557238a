"""`ctrnn train`: from a task to a run folder. `ctrnn evaluate RUN`: its weights on the test set.

`ctrnn list`: everything that has a name, with one line each.
"""

import math
import os
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click

from ctrnn_assembly.errors import ConfigError, check_known
from ctrnn_assembly.training import config as configs
from ctrnn_assembly.training.config import TrainConfig, difference, make_config, recommended
from ctrnn_cli import shared
from ctrnn_cli.shared import DIR, PATH, Column, Command, emit, facts, json_option, table

KINDS = ["tasks", "models", "theorems", "solvers", "topologies", "gates", "diagnostics", "recipes"]
KINDS += ["recommended"]
SOLVER = (Column("solver", "solver"), Column("step", "step", ".6g", missing="its own"))
OF_MODELS = ("modules", "units", "coupling", "depth", "width", "solver", "dt")
STATES = (Column("largest_state", "largest state", ".4g"), Column("certified", "step certified"))


@click.command("train", cls=Command)
@click.option("--recipe", "recipe_name", metavar="NAME", help="start from a paper's recipe")
@click.option("--config", "config_file", type=PATH, metavar="FILE", help="YAML settings")
@click.option("--data", type=PATH, metavar="FILE", help="series of your own: .csv, .ts, .npz or .npy")
@click.option("--fast", is_flag=True, help="a small trial: a few small samples, 2 epochs")
@click.option("--out", type=DIR, metavar="RUN", help="run folder  [default: runs/...]")
@click.option("--resume", type=DIR, metavar="RUN", help="go on with a run")
@json_option
@click.option("--profile", is_flag=True, help="print where the time of training went")
@shared.config_options
def train_command(resume: Path | None, as_json: bool, profile: bool, fast: bool, **given: Any) -> None:
    """Train a model on a task and leave a run folder.

    With no options: a certified assembly on the embedded `digits`, in a few minutes. Without
    --recipe and --config a run starts from what is recommended for its task, `ctrnn list recommended`;
    with another --model, from its training settings. The defaults below are of what is left open then,
    and of tasks of your own.
    """
    from torch.profiler import profile as recorder

    from ctrnn_assembly.certificates.result import growth_words
    from ctrnn_assembly.data.targets import in_words
    from ctrnn_assembly.training.fit import STAGES, fit
    from ctrnn_assembly.training.run import read_config, validation

    named, file, out = (given.pop(key) for key in ("recipe_name", "config_file", "out"))
    data, settings = given.pop("data"), {key: x for key, x in given.items() if x is not None}
    if data is not None:
        if clash := {"task", "data_dir"} & settings.keys():
            raise ConfigError(f"--data is the task; got {', '.join(sorted(clash))} as well. Drop it.")
        settings |= {"task": "own", "data_dir": str(data.resolve())}
    if resume is not None:
        if named or file or out or fast:
            raise ConfigError("--resume keeps a run's settings; drop --recipe, --config, --out, --fast.")
        run, own = resume, read_config(resume)
        config = make_config(own.model_dump(), settings)
        free = {"data_dir", "device", "devices", "nodes", *["epochs"] * (config.epochs > own.epochs)}
        if other := difference(config, own, free=free):
            must = "a resumed run keeps its settings"
            raise ConfigError(f"{must}; got {other}. Start a new run with --config {run}/config.yaml.")
    else:
        layers = [configs.recipe(named)] if named else []
        if first := settings.get("init_from"):
            layers.append(read_config(Path(first)).model_dump())
            settings["init_from"] = str(Path(first).resolve())
        layers += [configs.read_yaml(file)] if file else []
        asked = (settings.get(name) for name in ("model", "target"))
        best = {} if layers else recommended(settings.get("task", "digits"), *asked)
        if fast:
            layers.append(configs.trial(make_config(best, *layers, settings).task))
        config = make_config(best, *layers, settings)
        sources = [f"the recipe {named}"] * bool(named) + [str(one) for one in (first, file) if one]
        if sources or best:
            click.echo(f"starts from {', '.join(sources)}" if sources else start(config, best), err=True)
        run = out or new_folder(config)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes its own news to stderr
    watched = recorder(acc_events=True) if profile else None
    try:
        summary = fit(config, run, resume=resume is not None, profile=watched)
    except KeyboardInterrupt:
        click.echo(interrupted(run), err=True)
        sys.exit(130)
    finally:
        if resume is None and out is None:
            with suppress(OSError):  # it holds something
                run.rmdir()
    certificate = summary["certificate"]
    condition = certificate["metric"]["condition_number"] or math.inf  # None: of no finite number
    rows = [
        ("test", in_words(summary, "test") or "none"),
        *learnt_nothing(config, summary),
        ("validation", validation(summary)),
        ("trained parameters", f"{summary['parameters']:,}"),
        ("epochs, seconds", f"{summary['epochs']}, {summary['seconds']}"),
        ("certificate", certificate["verdict"]),
        *[("metric", growth_words(condition))] * (certificate["certified"] and condition > 1),
        ("run folder", str(run)),
    ]
    emit(summary, facts(rows, title=f"{summary['model']} on {summary['task']}"), as_json=as_json)
    if watched is not None:
        averages = watched.key_averages()
        averages.sort(key=lambda one: one.self_cpu_time_total + one.self_device_time_total, reverse=True)
        averages.sort(key=lambda one: one.key not in STAGES)
        title = "time of training: stages, with what they call, and the longest operations"
        click.echo(averages.table(row_limit=len(STAGES) + 10, header=title), err=as_json)


def new_folder(config: TrainConfig) -> Path:
    """A folder of this run alone, made below runs/; the processes of a distributed run share it."""
    several = config.devices * config.nodes > 1
    if several and "CTRNN_RUN" in os.environ:
        return Path(os.environ["CTRNN_RUN"])
    name = f"{config.task.replace(':', '-')}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}"
    for k in count(1):
        run = Path("runs") / (name if k == 1 else f"{name}-{k}")
        with suppress(FileExistsError):
            run.mkdir(parents=True)
            break
    if several:
        os.environ["CTRNN_RUN"] = str(run)
    return run


def interrupted(run: Path) -> str:
    if not (run / "config.yaml").exists():
        return "interrupted before anything was written"
    begun = (run / "checkpoints" / "last.ckpt").exists()
    where = "from the last epoch" if begun else "from the start: no epoch has ended"
    return f"interrupted; `ctrnn train --resume {run}` goes on {where}"


def solvers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[dict[str, Any]]:
    """The callback of a list such as euler,euler:8,dopri5: settings by solver."""
    try:
        parts = [one.strip().partition(":") for one in (value or "").split(",") if one]
        return [{"solver": name, "substeps": int(n) if colon else None} for name, colon, n in parts]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of solvers like euler,euler:8") from None


def start(config: TrainConfig, recommended: dict[str, Any]) -> str:
    """What a run without --recipe and --config starts from, in a line; given options are in it."""
    from ctrnn_assembly.models import MODELS

    check_known("model", config.model, MODELS)
    own = [name for name in OF_MODELS if name in MODELS[config.model].settings]
    said = ", ".join(f"{k} {getattr(config, k)}" for k in ("model", *own, "epochs", "learning_rate"))
    part = "what is" if "model" in recommended else "the training settings"
    return f"starts from {part} recommended for {config.task}: {said}"


def learnt_nothing(config: TrainConfig, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A line on a net that does no better than chance, and what is recommended; none on others."""
    if summary["chance"] is None or summary["test_accuracy"] > summary["chance"]:
        return []
    best = recommended(config.task)
    other = ", ".join(f"{key} {x}" for key, x in best.items() if x != getattr(config, key))
    own = "--data FILE" if config.task == "own" else f"--task {config.task}"
    advice = f"`ctrnn train {own}` alone takes what is recommended: {other}"
    if not other:
        again = "its settings are the recommended ones: try more epochs"
        advice = again if best else "try another learning_rate, more epochs, or other units"
    no_better = f"{summary['chance']:.4f} is within reach without learning anything"
    return [("at chance", f"{no_better}; {advice}")]


@click.command("evaluate", cls=Command)
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--data-dir", "--data", "data_dir", help="where the data are, if they have moved")
@shared.step_options
@click.option("--swap", callback=solvers, metavar="SOLVER[:N],...", help="with each of these solvers")
@click.option("--radius", is_flag=True, help="perturbations that provably change no class; an attack")
@click.option("--samples", type=int, help="of the test set, for --radius  [default: 100]")
@click.option("--steps", type=int, help="gradient steps of the attack at a radius  [default: 10]")
@click.option("--restarts", type=int, help="starts of the attack, the first from 0  [default: 1]")
@click.option("--rate", type=float, help="a step of the attack, relative to a radius  [default: 0.25]")
@shared.output_options
def evaluate_command(
    folder: Path, data_dir: str | None, swap: list[dict[str, Any]], radius: bool, **one: Any
) -> None:
    """Load the weights of a run folder and read the test set.

    With another solver, substeps or dt, or as one field, what was trained is shown beside it. --swap
    makes a table of solvers, euler:8 being Euler with 8 substeps, and with --plot a picture. States that
    explode are warned of: the accuracy of such states means nothing.

    --radius gives the size of a perturbation of the input, in units of what the net reads, below which
    the class of a test sample provably stays, beside the smallest that an attack finds: of the largest
    norm over time and of the root mean square. The claim is of the net in float64.
    """
    from ctrnn_assembly.data.targets import MEASURES, in_words
    from ctrnn_assembly.solvers import check_settings
    from ctrnn_assembly.training.run import Run, read_config
    from ctrnn_assembly.training.swap import measured, swapped

    read_config(folder)  # a run folder, not the name of a recipe
    outputs = {key: one.pop(key) for key in ("as_json", "csv", "npz", "plot")}
    attacks = {k: x for k in ("samples", "steps", "restarts", "rate") if (x := one.pop(k)) is not None}
    if radius and swap:
        raise ConfigError("--radius is of one solver; drop --swap, or name it by --solver.")
    if radius:
        show_radius(Run.open(folder, data_dir=data_dir, **one), outputs, **attacks)
        return
    if attacks:
        raise ConfigError(f"--{min(attacks)} is of the attack of --radius. Add --radius, or drop it.")
    if swap and (one["solver"] or one["substeps"]):
        raise ConfigError("--swap has its own solvers and substeps, such as euler:8; drop the others.")
    for each in swap or [one]:
        check_settings(each["solver"] or "euler", None, each["substeps"] or 1)
    changed = any(value is not None for value in one.values())
    others = [{**one, **another} for another in swap] or [one] * changed
    run, *rest = [Run.open(folder, data_dir=data_dir, **changes) for changes in ({}, *others)]
    task = run.task  # refused before its weights are
    for other in rest:
        other.task = task
    found = [measured(run), *map(swapped if swap else measured, rest)]
    if one["dt"]:
        own, said = run.config.dt, "--dt changes the physics, --substeps refines the step alone"
        click.echo(f"note: {said}: a sample lasts {one['dt']:g} instead of {own:g}.", err=True)
    for said in filter(None, (swap.warning(found[0]) for swap in found)):
        click.echo(f"warning: {said}", err=True)

    top = found[0] if swap or not rest else found[1]
    rows, certificate = [each.row() for each in found], top.run.certificate.as_dict()
    rows[0]["solver"] += " (trained)"
    shown = [row | {"certified": "yes" if row["certified"] else "no"} for row in rows]
    proven = [f"{row['solver']}: {row['verdict']}" for row in rows] if swap else [certificate["verdict"]]
    measures = {f"test_{key}": x for key, x in top.measures.items() if x is not None}
    tested = [Column(key, f"test {MEASURES[key[5:]]}", ".4f") for key in measures]
    columns = (*SOLVER, *tested, *STATES)
    measures["largest_state"] = top.largest_state
    emit(
        {**top.run.about(), **measures, "certificate": certificate, "rows": rows},
        f"{run.title}: test {in_words(measures, 'test')}, largest state {top.largest_state:.4g}",
        *[table(shown, columns, title="the same weights, swapped solvers")] * bool(rest),
        *proven,
        columns=columns,
        arrays={f"largest_{each.name}": each.largest for each in found},
        figure=partial(shared.drawn, "curves.swap_figure", found, title=run.title),
        **outputs,
    )


def show_radius(run: Any, outputs: dict[str, Any], samples: int = 100, **strength: Any) -> None:
    """Certified radii of the first test samples, and those of an attack, by norm."""
    import numpy as np
    import torch

    from ctrnn_assembly.robustness import NORMS, attack, certified_radii

    if run.config.target != "class":
        raise ConfigError(f"--radius is of classes; got target {run.config.target}. Leave it out.")
    model, made = run.build(double=True).requires_grad_(False), []
    u, y, lengths = run.inputs("test", samples)
    for part in torch.arange(samples).split(64):
        given = u[part], None if lengths is None else lengths[part]
        logits, proven = certified_radii(model, *given)
        attacked = [attack(model, *given, norm=norm, **strength) for norm in NORMS]
        made.append(torch.stack([logits.argmax(1) == y[part], *proven, *attacked]))
    right, *found = torch.cat(made, 1).numpy()
    kept, names = right > 0, [f"{bound}_{norm}" for bound in ("certified", "attack") for norm in NORMS]
    radii = {name: np.where(kept, radius, 0.0) for name, radius in zip(names, found, strict=True)}
    known = np.concatenate([radius[(radius > 0) & np.isfinite(radius)] for radius in radii.values()])
    if not len(known):
        raise ConfigError(f"none of {samples} test samples is right with a margin; train further.")
    at = np.array([float(f"{r:.2g}") for r in np.geomspace(known.min(), known.max(), 7)])
    curve = [Column("radius", "radius", ".2g", at)]
    for name, radius in radii.items():
        curve.append(Column(name, name.replace("_", ", "), ".3f", (radius > at[:, None]).mean(1)))
    unit, norms, said = getattr(run.task.sequence, "unit", 1.0), {}, []
    for norm in NORMS:
        pair = [radii[f"{bound}_{norm}"][kept] for bound in ("certified", "attack")]
        low, high, ratio = map(float, map(np.median, (*pair, pair[1] / pair[0])))
        norms[norm] = {"certified": low, "attack": high, "ratio": ratio}
        one = f"{norm} over time: certified {low:.3g} ({unit * low:.3g} in raw units), attack {high:.3g}"
        said.append(f"{one}, {ratio:.3g} times as large: medians of the samples that are right")

    columns = [Column(name, name, "", radius) for name, radius in radii.items()]
    rows = {"curve": shared.rows_of(curve), "rows": shared.rows_of(columns)}
    clean, title = float(kept.mean()), f"{run.title}: share of {samples} test samples that stay right"
    emit(
        {**run.about(), "test_accuracy": clean, "unit": unit, "norms": norms, **rows},
        table(rows["curve"], curve, title=title),
        f"without a perturbation: {clean:.4f}; its units are those of the net's input",
        *said,
        columns=columns,
        arrays=radii,
        figure=partial(shared.drawn, "curves.radius_figure", radii, title=run.title),
        **outputs,
    )


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
@json_option
def list_command(kind: str | None, as_json: bool) -> None:
    """List what can be named on the command line."""
    from ctrnn_assembly.contracting import CONSTRAINTS
    from ctrnn_assembly.data import TASKS
    from ctrnn_assembly.models import MODELS
    from ctrnn_assembly.schemes import FIXED_STEP, SCHEMES, SOLVERS
    from ctrnn_assembly.topology import TOPOLOGIES
    from ctrnn_cli.main import COMMANDS

    fixed = dict.fromkeys(FIXED_STEP, "torchdiffeq, fixed step")
    ours = {name: f"steps of dt / substeps: {scheme.summary}" for name, scheme in SCHEMES.items()}
    docs = {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in CONSTRAINTS.items()}
    tables: dict[str, dict[str, str]] = {
        "tasks": {name: entry.about for name, entry in TASKS.items()},
        "models": {name: model.summary for name, model in MODELS.items()},
        "theorems": {name: doc.split(";")[0].rstrip(".") for name, doc in docs.items()},
        "solvers": dict.fromkeys(SOLVERS, "torchdiffeq, adaptive") | fixed | ours,
        "topologies": dict(TOPOLOGIES),
        "gates": {model.gate: model.summary for model in MODELS.values() if model.gate},
        "diagnostics": {name: said for name, (module, said) in COMMANDS.items() if module == "inspect"},
        "recipes": {name: entry["about"] for name, entry in configs.recipes().items()},
        "recommended": configs.RECOMMENDED,
    }
    if kind is not None:
        tables = {kind: tables[kind]}
    shown = (facts(entries.items(), title=title) for title, entries in tables.items())
    emit(tables, *shown, as_json=as_json)
