"""A model on disk as a program that needs nothing of dofa: written, read back, and compared with the model itself."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dofa.errors import CheckpointError, ConfigError
from dofa.model.exported import Exported
from dofa.pixels import Float

TOLERANCE = 1e-4  # of the largest value of an output
ONNX_LIMIT = 2**31 - 2**24  # bytes: the file is one protocol buffer
Run = Callable[[Float], dict[str, Float]]


def write_onnx(module: Exported, file: Path, images: Float, record: dict[str, Any]) -> Run:
    """Write an ONNX file with a dynamic batch; what runs it is given back.

    Args:
        module: takes images, gives a dictionary of outputs.
        file: to write.
        images: (B, C, H, W) to trace with.
        record: description that travels in the file; its `outputs` names them.

    Raises:
        ConfigError: more weights than one file of the format holds.
    """
    import onnxruntime

    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if size > ONNX_LIMIT:
        raise ConfigError(f"{size / 1e9:.1f} GB of weights, and an ONNX file holds 2: export a .pt2 program")
    names = list(record["outputs"])
    program = cast(
        torch.onnx.ONNXProgram,
        torch.onnx.export(traced(module, images), input_names=["image"], output_names=names, verbose=False),
    )
    for key, value in record.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    program.save(file, external_data=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda given: dict(zip(names, session.run(None, {"image": given}), strict=True))


def write_program(module: Exported, file: Path, images: Float, record: dict[str, Any]) -> Run:
    """Write a torch.export program with a dynamic batch; what runs it is given back.

    Args:
        module: takes images, gives a dictionary of outputs.
        file: to write.
        images: (B, C, H, W) to trace with.
        record: description that travels in the file.
    """
    said = json.dumps(record, ensure_ascii=False)
    whole = io.BytesIO()  # its writer ends the process where a disk is full
    torch.export.save(traced(module, images), whole, extra_files={"dofa.json": said})
    file.write_bytes(whole.getbuffer())
    again = torch.export.load(file).module()

    def run(given: Float) -> dict[str, Float]:
        with torch.inference_mode():
            return {name: answer.numpy() for name, answer in again(torch.from_numpy(given)).items()}

    return run


def traced(module: Exported, images: Float) -> torch.export.ExportedProgram:
    """The program for any number of images.

    Args:
        module: takes images, gives a dictionary of outputs.
        images: (B, C, H, W) to trace with.
    """
    shapes = {"image": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(module, (torch.from_numpy(images),), dynamic_shapes=shapes)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says of its own insides while it exports; the result is checked."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def compare(run: Run, images: Float, expected: dict[str, Tensor], name: str) -> float:
    """The largest difference of an output, over the largest value of that output.

    Args:
        run: what was exported, on arrays.
        images: (B, C, H, W).
        expected: the model's own outputs, by name.
        name: of the file, for messages.

    Raises:
        CheckpointError: it is above 1e-4.
    """
    got, worst = run(images), 0.0
    for output, reference in expected.items():
        exact = reference.numpy()
        difference = float(np.abs(got[output] - exact).max() / np.abs(exact).max())
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{name} is not written: {output} of {len(images)} images differs from the model's by {difference:.1e} "
                f"of its largest value (at most {TOLERANCE:g}): report it with the versions of torch and onnxruntime"
            )
        worst = max(worst, difference)
    return worst
