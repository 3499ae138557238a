"""A trained classifier as a program that needs no code of this library: of `torch.export`, or ONNX.

A "sequence" reads input (batch, time, m) and gives logits (batch, k), after the last sample; a "step"
reads u (batch, m) and x (batch, state_size), and gives x_next one sample later, and its logits. batch
and time are free; the loop over time is one operator, `scan` (ONNX: `Scan`). A program is in the
precision of the weights, has no gradient, checks no value, and starts a sequence where the layer does.
lengths, dt and reset are not in it, nor `Stack`, fields of one's own, and torchdiffeq's solvers.
"""

import copy
import io
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.layers import SequenceClassifier

Part = Literal["sequence", "step"]
Format = Literal["onnx", "torch"]
NAMES = {"sequence": ["logits"], "step": ["x_next", "logits"]}


class _Step(nn.Module):
    def __init__(self, net: SequenceClassifier) -> None:
        super().__init__()
        self.net, self.move = net, net.core.stepper()

    def forward(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        moved = self.move(u, x)
        return moved, self.net.read(moved[:, : self.net.core.hidden_size])


def export_program(net: SequenceClassifier, part: Part = "sequence") -> ExportedProgram:
    """The classifier, or its step, batch and time free; ConfigError for a solver not of `SCHEMES`."""
    if not net.core.traceable:
        raise ConfigError(
            "an exported program takes steps of a grid solver, which looks at no value, of one CTRNN "
            f"whose field has no time of its own; got {getattr(net.core, 'solver', '')!r} of "
            f"{type(getattr(net.core, 'field', net.core)).__name__}. Use solver='euler', 'imex' or "
            "'exponential-euler', and a CTRNN of a Subnetwork or an Assembly."
        )
    batch, time = Dim("batch"), Dim("time")
    with torch.no_grad():
        net = copy.deepcopy(net).eval().requires_grad_(False)
        u, x = example(net, "step", 2)
        step = torch.export.export(_Step(net), (u, x), dynamic_shapes=({0: batch}, {0: batch}))
        if part == "step":
            return step
        # The body of the loop is the exported step: what it needs is computed, and buffers of its own,
        # no two in one memory, which the operator refuses.
        body = step.module()
        for name, value in [*vars(body).items()]:
            if isinstance(value, Tensor):
                delattr(body, name)
                body.register_buffer(name, value.clone())
        net.add_module("body", body)
        net.core.stepper = lambda: lambda u, x: body(u, x)[0]  # type: ignore[method-assign]
        shapes = {"input": {0: batch, 1: time}}
        return torch.export.export(net, tuple(example(net, part, 2)), dynamic_shapes=shapes)


def exported(
    net: SequenceClassifier, part: Part, format: Format, about: Mapping[str, str]
) -> tuple[bytes, float]:
    """The file's content with `about` as its metadata, and the largest deviation from the net's numbers.

    ConfigError for what cannot be exported, or if the file, on other sizes, gives other numbers.
    """
    program = export_program(net, part)
    if format == "torch":
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of weights that share memory
            torch.export.save(program, buffer, extra_files=dict(about))
        content = buffer.getvalue()
    else:
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            fix = "Use pip install 'ctrnn-assembly[export]', or format='torch'."
            raise ConfigError(f"ONNX needs onnx, onnxscript and onnxruntime: {error}. {fix}") from None
        made: Any = torch.onnx.export(program, output_names=NAMES[part], verbose=False)
        made.model.metadata_props.update(about)
        content = made.model_proto.SerializeToString()
    given = example(net, part, 3)
    with torch.no_grad():
        expected = _Step(net)(*given) if part == "step" else (net(*given),)
    found = run_exported(content, format, *given)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    scale = max(1.0, *(float(b.abs().max()) for b in expected))
    if not worst <= 100 * torch.finfo(given[0].dtype).eps * scale:
        raise ConfigError(f"the exported program gives other numbers than the net, by {worst:.3g}.")
    return content, worst


def run_exported(content: bytes, format: Format, *given: Tensor) -> tuple[Tensor, ...]:
    """What a program of `exported` gives, by onnxruntime or torch."""
    if format == "torch":
        found = torch.export.load(io.BytesIO(content)).module()(*given)
        return found if isinstance(found, tuple) else (found,)
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feeds = {one.name: x.numpy() for one, x in zip(session.get_inputs(), given, strict=True)}
    return tuple(torch.from_numpy(value) for value in session.run(None, feeds))


def example(net: SequenceClassifier, part: Part, batch: int) -> list[Tensor]:
    """Random inputs of a program, always the same."""
    like, m = next(net.parameters()), net.core.input_size
    step, sequence = [(batch, m), (batch, net.core.state_size)], [(batch, 2 * batch + 1, m)]
    shapes: Any = step if part == "step" else sequence
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=like.dtype) for shape in shapes]
