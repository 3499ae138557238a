"""`ctrnn predict RUN`: classes or values of new series, by a run that `ctrnn train --data` left."""

from pathlib import Path
from typing import Any

import click

from ctrnn_cli.shared import PATH, Command, OutputFile, place


@click.command("predict", cls=Command)
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--data", type=PATH, metavar="FILE", required=True, help="series as for training")
@click.option("--out", type=OutputFile(".csv"), metavar="FILE", help="[default: predictions.csv in RUN]")
def predict_command(folder: Path, data: Path, out: Path | None) -> None:
    """Say of the series of a file what a run learnt to, with its weights and normalisation.

    The file has the channels of training; a target in it is not read. The table has a row a series, or
    for per-step and forecast a row a step: id, step (from 0), time if there is one, prediction, in the
    data's own unit, and the probability that the net gives to each class.
    """
    from ctrnn_assembly.data.own import Preparation, read_series
    from ctrnn_assembly.data.targets import STEPWISE
    from ctrnn_assembly.training.batches import outputs_of
    from ctrnn_assembly.training.run import PREPARATION, Run, read_config, write_table

    read_config(folder)  # a run folder, not the name of a recipe
    run, prepared = Run.open(folder), Preparation.read(folder / PREPARATION)
    series = read_series(data, None, prepared.columns)
    split, rows, stepwise = prepared.split(series, answered=False), [], prepared.target in STEPWISE
    for i, outputs in enumerate(outputs_of(run.model, split)):
        for step, one in enumerate(outputs[: series.lengths[i]] if stepwise else [outputs]):
            row: dict[str, Any] = {"id": series.ids[i]} | ({"step": step} if stepwise else {})
            if stepwise and series.stamps is not None:
                row["time"] = series.stamps[i, step]
            rows.append(row | prepared.words(one))
    out = place(out, folder, "predictions.csv")
    write_table(out, rows)
    click.echo(f"{run.title}: {len(series.ids)} series of {data.name}. {series.note}\nwritten: {out}")
