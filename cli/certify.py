"""`ctrnn certify RUN|CONFIG`, or `--weights FILE`: what is proven of a network, as its weights are."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import click
from click import option
from rich.table import Table

import ctrnn_assembly
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, check_within
from ctrnn_cli import shared
from ctrnn_cli.shared import Column, table

MANY, WORST = 20, 5  # more modules than that are shown by the worst of them
PLACES = click.Choice(["outside", "inside"])
SEARCHES = click.Choice(["none", "fast"])


@click.command("certify", cls=shared.Command)
@click.argument("source", metavar="[RUN|CONFIG]", required=False)
@option("--weights", type=shared.PATH, metavar="FILE", help="matrices W, L: .npz, .npy, .mat or .csv")
@option("--activation", help="of --weights  [default: tanh]")
@option("--activation-place", "place", type=PLACES, help="W phi(x) or phi(W x)  [default: outside]")
@option("--tau", type=float, help="of --weights, unless in the file  [default: 1]")
@option("--uncertainty", metavar="R|P%", help="of --weights: for all within R, or P % of each entry")
@shared.step_options
@option("--initial", is_flag=True, help="of a run, the weights before training")
@option("--search", type=SEARCHES, default="fast", help="for a metric, if the net's own proves nothing")
@option("--require-step", is_flag=True, help="the step's verdict counts for the exit code, too")
@option("--write-proof", "proof", type=shared.Output(".json"), help="that verifier.py checks")
@option("--witness", type=shared.Output(".json"), metavar="FILE", help="write what refutes the net")
@shared.json_option
@shared.plot_option
def certify_command(source: str | None, proof: Path | None, witness: Path | None, **given: Any) -> None:
    """Prove that two states under one input approach each other, for the weights as they are now.

    RUN is a run folder: its trained weights, or those of the last epoch if it is not finished. CONFIG is
    a YAML file or the name of a recipe: the network with its initial weights. No data are read.
    --weights reads tau x' = -x + W phi(x) + L x + u from a file with W, (n, n), or its blocks, (p, k, k)
    or W0, W1, ...; and L, (n, n), and tau, a number or (n,), if they are there; its step is Euler's of
    dt .03 by default.

    Exit code 0: certified in continuous time, or as a map. 1: refuted: two states under one input are
    known that never meet. 3: unknown. 2: an error. The step of the solver has a verdict of its own
    (`discrete` in the JSON), which counts for the exit code with --require-step.

    In the JSON, null stands for a bound that does not exist; max_dt null means every dt.
    """
    from ctrnn_assembly.certificates.given import SUFFIXES
    from ctrnn_assembly.certificates.result import fact_rows, verdict, weights_rows
    from ctrnn_assembly.training.run import write
    from ctrnn_assembly.witness import judge

    file, search, require_step = (given.pop(key) for key in ("weights", "search", "require_step"))
    outputs = {key: given.pop(key) for key in ("as_json", "plot")}
    if (source is None) == (file is None) or str(source).endswith(SUFFIXES):
        raise ConfigError("name a run, a YAML file or a recipe, or matrices by --weights FILE.")
    own = {name: given.pop(name) for name in ("activation", "place", "tau", "uncertainty")}
    run = {name: given.pop(name) for name in ("initial", "one_field", "substeps")}
    for name, value in (own if file is None else run).items():
        if value is not None and value is not False:
            flag = "--activation-place" if name == "place" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is of {'--weights' if file is None else 'a run'}. Leave it out.")
    found = of_run(source, search, given | run) if source else of_file(file, search, given | own)
    certificate, name = found.certificate, Path(source or file).name
    step = certificate.step is not None and certificate.step.certified
    enough = certificate.certified and (step or not require_step)
    verdicts = judge(found.net, certificate, inputs=24 if witness else 0 if enough else 4)
    if witness and verdicts.witnesses:
        named = {"file": source or str(file), "settings": given | (run if source else own)}
        write(witness, json.dumps({"kind": "witness"} | named | asdict(verdicts), indent=1))

    def figure() -> Any:
        from ctrnn_assembly.certificates.certify import step_curves
        from ctrnn_assembly.figures.diagnostics import certificate_figure

        curves = step_curves(found.net, certificate, near=found.dt)
        return certificate_figure(certificate, curves, title=f"{about['model']}: {name}")

    about = found.about
    rows = [*weights_rows(about["weights"]), *fact_rows(certificate), *found.rows]
    if proof is not None and certificate.certified:
        about["proof"] = proven(proof, found, source)
        rows.append(("proof", "\n".join(about["proof"])))
    shared.emit(
        about | certificate.as_dict() | found.more | {"verdicts": asdict(verdicts)},
        click.style(verdict(certificate), fg="green" if certificate.certified else "red"),
        *map(str, verdicts.witnesses),
        *([f"unknown: {verdicts.tried}"] if verdicts.tried else []),
        shared.facts(rows, title=f"{about['model']}, {about['units']} units{found.note}"),
        *shown_parts(certificate),
        figure=figure,
        **outputs,
    )
    refuted = "refuted" in (verdicts.flow or verdicts.step, require_step and verdicts.step)
    click.get_current_context().exit(0 if enough else 1 if refuted else 3)


@click.command("check", cls=shared.Command)
@click.argument("file", type=shared.PATH)
@click.argument("source", metavar="[RUN|CONFIG|WEIGHTS]", required=False)
def check_command(file: Path, source: str | None) -> None:
    """Check FILE, which `ctrnn certify` has written: by --witness, or by --write-proof.

    The certified net, or that after FILE, runs again from a witness; a proof is of matrices beside it.
    Exit code 0: proven. 1: refuted, or refused. 2: another net, a damaged file, or states that meet.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        code = {"witness": check_witness, "proof": check_proof}[content["kind"]](file, content, source)
    except CtrnnError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = "it lacks " * isinstance(error, KeyError) + " ".join(str(error).split())[:100]
        fix = "Write it again, by --write-proof or --witness."
        raise DataError(f"{file} is no file that `ctrnn certify` wrote: {reason}. {fix}") from error
    click.get_current_context().exit(code)


def check_proof(file: Path, content: Any, source: str | None) -> int:
    """What the verifier says; and refused if weights that are at hand give other matrices here."""
    from ctrnn_assembly.certificates.proofs import are_of
    from ctrnn_assembly.certificates.verifier import main, read

    named = file.parent / content["weights"]["file"]
    weights = Path(source) if source else named
    weights = weights / named.name if weights.is_dir() else weights
    if source and not weights.is_file():
        raise ConfigError(f"a proof is of weights in a file; got {source!r}. Name a run, or that file.")
    code = main([str(file), *([str(weights)] if source else [])])
    known = read(file, weights) if code == 0 and weights.is_file() else None
    net = known and net_of(weights, *known)
    if known and net is not None:
        code = int(not are_of(*known, net))
        click.echo(f"{'refused: not' if code else 'checked:'} the matrices of {weights}")
    return code


def net_of(weights: Path, proof: Any, arrays: Any) -> Any:
    """Of a run's weights, or of matrices with the phi and tau of a proof; None for other files."""
    import torch

    from ctrnn_assembly.certificates.given import SUFFIXES, read_matrices, terms_of

    if weights.suffix in SUFFIXES:
        stored, phi = {"tau": arrays["tau"]} | read_matrices(weights), proof["activations"].split()[0]
        inside = arrays["Z"].tolist() != torch.eye(len(arrays["Z"])).tolist()
        return terms_of(**stored, activation=phi, place="inside" if inside else "outside")
    folder = next((one for one in weights.resolve().parents[:2] if (one / "config.yaml").exists()), None)
    run = None if folder is None else ctrnn_assembly.Run.open(folder)
    return run.build(data=False).core if run and run.file and run.file.name == weights.name else None


def check_witness(file: Path, content: Any, source: str | None) -> int:
    """Replay each witness, or raise a DataError."""
    from ctrnn_assembly.witness import Witness, replay

    named, settings = source or content["file"], content["settings"]
    given = "tau" in settings
    found = of_file(Path(named), "none", settings) if given else of_run(named, "none", settings)
    for witness in [Witness(**one) for one in content["witnesses"]] or [Witness(**{})]:
        click.echo(str(replay(witness, found.net)))
    return 1


@dataclass(frozen=True)
class Found:
    """A certificate and of what it is; of matrices, `more` for the JSON and `rows` for the table."""

    certificate: Any
    about: dict[str, Any]  # model, units and weights, as `Run.about`
    net: Any
    dt: float  # of one step
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[tuple[str, str]] = ()


def proven(file: Path, found: Found, run: str | None) -> list[str]:
    """Write the proof, and note its hash in the summary of a finished run; what is proven."""
    from ctrnn_assembly.certificates.proofs import write_proof
    from ctrnn_assembly.training.run import read_summary, write

    weights = found.about["weights"]
    if weights["file"] is None:
        raise ConfigError("a proof is of weights in a file, and initial ones have none. Train first.")
    said = write_proof(file, found.net, found.certificate, Path(weights["file"]))
    if run and weights["kind"] == "trained" and (summary := read_summary(Path(run))):
        about = {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        write(Path(run) / "summary.json", json.dumps(summary | {"proof": about}, indent=2) + "\n")
    return said


def of_run(source: str, search: Any, changes: dict[str, Any]) -> Found:
    """Of the weights of a run, or of a configuration before training."""
    run = ctrnn_assembly.Run.open(source, **changes)
    config, about = run.config, {key: run.about()[key] for key in ("model", "units", "weights")}
    core: Any = run.build(data=False).core
    certificate, note = core.certificate(search=search), ", tau trained" if config.train_tau else ""
    return Found(certificate, about, core, config.dt / config.substeps, note)


def of_file(file: Any, search: Any, settings: dict[str, Any]) -> Found:
    from ctrnn_assembly.certificates.certify import certify, largest_uncertainty
    from ctrnn_assembly.certificates.given import input_gain, read_matrices, terms_of, uncertain
    from ctrnn_assembly.certificates.result import down, up

    stored, tau = read_matrices(file), settings["tau"]
    if tau is not None and "tau" in stored:
        raise ConfigError(f"tau is in {file}, too. Leave --tau out.")
    phi, place = settings["activation"] or "tanh", cast(Any, settings["place"] or "outside")
    terms = terms_of(**{"tau": 1.0 if tau is None else tau} | stored, activation=phi, place=place)
    dt, given = 0.03 if settings["dt"] is None else settings["dt"], settings["uncertainty"]
    check_within("(0, inf)", dt=dt)
    step: Any = {"dt": dt, "solver": settings["solver"] or "euler"}
    by = None if given is None else half_widths(given, terms)
    certificate = certify(terms, **step, search=search, uncertainty=by)
    metric: Any = certificate.metric.matrix
    gain, more = input_gain(terms, certificate), {}
    rows = [("input to state", f"|x - x~| <= {up(gain)} sup |u - u~|")] if certificate.certified else []
    if by is not None:
        times = 0.0 if metric is None else largest_uncertainty(terms, metric, by, **step)
        more = {"uncertainty": given, "largest_uncertainty": times}
        rows.append(("uncertainty", f"{given}; certified, flow and step, up to {down(times)} times it"))
        terms = uncertain(terms, by)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    weights, more = {"kind": "given", "file": str(file), "sha256": sha}, {"input_gain": gain} | more
    about = {"model": "given", "units": terms.n, "weights": weights}
    return Found(certificate, about, terms, dt, more=more, rows=rows)


def half_widths(given: str, terms: Any) -> Any:
    """A radius, or the share of every entry's size that P% says."""
    try:
        size = float(given.removesuffix("%"))
    except ValueError:
        raise ConfigError(f"--uncertainty must be a number or a share like 1%; got {given!r}.") from None
    if not given.endswith("%"):
        return size
    widths = [abs(block) * (size / 100) for block in terms.blocks]
    return ctrnn_assembly.Uncertainty(widths, 0.0 if terms.L is None else abs(terms.L) * (size / 100))


def shown_parts(certificate: Any) -> Iterator[Table | str]:
    """A table of the modules, or of many the worst ones, and what all others have at least; and of a
    stack its layers' steps, with the constants between them."""
    from ctrnn_assembly.certificates.result import down, factor, samples_words, up

    modules, cascade = certificate.modules, certificate.cascade
    worst = sorted(modules, key=lambda module: module.margin)
    shown = worst[:WORST] if len(worst) > MANY else modules
    columns = [
        Column("index", "module"),
        Column("size", "units", ">"),
        Column("theorem", "theorem"),
        Column("margin", "margin (1/tau)", down),
        Column("rate", "rate", down),
    ]
    if shown:
        yield table([*map(vars, shown)], columns, title="modules" if cascade is None else "layers")
    if rest := worst[len(shown) :]:
        slowest = min(one.rate for one in rest)
        yield f"{len(rest)} more: margin >= {down(rest[0].margin)}, rate >= {down(slowest)}"
    columns = [
        Column("index", "layer"),
        Column("factor", "factor <=", factor),
        Column("memory", "samples to 1/1000", samples_words),
        Column("input_gain", "input gain <=", up),
        Column("output_gain", "output gain <=", up),
    ]
    if cascade is not None:
        title = "steps" if certificate.step.certified else "exact solution, from sample to sample"
        yield table([*map(vars, cascade.layers)], columns, title=title)
