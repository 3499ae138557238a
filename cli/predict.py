"""`ctrnn predict RUN`: the classes of new series, by a run that `ctrnn train --data` left."""

from pathlib import Path

import click

from ctrnn_cli.shared import PATH, Command, OutputFile


@click.command("predict", cls=Command)
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--data", type=PATH, metavar="FILE", required=True, help="series as for training")
@click.option("--out", type=OutputFile(".csv"), metavar="FILE", required=True, help="table to write")
def predict_command(folder: Path, data: Path, out: Path) -> None:
    """Classify the series of a file with the weights, normalisation and classes of a run.

    The file has the channels of training; a class in it is not read. The table has a row a series: id,
    prediction, and the probability that the net gives to each class.
    """
    import torch

    from ctrnn_assembly.data.own import Preparation, read_series
    from ctrnn_assembly.training.batches import timed
    from ctrnn_assembly.training.run import PREPARATION, Run, read_config, write_table

    read_config(folder)  # a run folder, not the name of a recipe
    run, prepared = Run.open(folder), Preparation.read(folder / PREPARATION)
    series = read_series(data, classes=False)
    split, rows = prepared.split(series), []
    for index in torch.arange(len(split)).split(256):
        part = split.take(index)
        with torch.no_grad():
            u = prepared(part.x).to(run.model.readout.weight)
            found = run.model(u, **timed(run.model, part.given)).double().softmax(-1)
        for i, p in zip(index.tolist(), found, strict=True):
            shares = {f"probability_{c}": float(q) for c, q in zip(prepared.classes, p, strict=True)}
            rows.append({"id": series.ids[i], "prediction": prepared.classes[int(p.argmax())], **shares})
    write_table(out, rows)
    click.echo(f"{run.title}: {len(rows)} series of {data.name}\nwritten: {out}")
