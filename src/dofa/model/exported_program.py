"""A model on disk as a program that needs nothing of dofa: written, read back, and compared with the model itself."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from dofa.errors import CheckpointError, ConfigError
from dofa.model.encoder import StaticViT
from dofa.model.heads import Block, Head, level_features
from dofa.pixels import Float, Scaling

Numbers = Literal["physical", "raw"]


class Normalisation(nn.Module):
    """`Scaling.normalise` as a module; NaN says no measurement and gives 0, the mean.

    Args:
        numbers: what comes in: raw numbers of the product, or physical values.
    """

    def __init__(self, scaling: Scaling, numbers: Numbers) -> None:
        super().__init__()
        self.raw = numbers == "raw"
        clips = [(-np.inf, np.inf) if clip is None else clip for clip in scaling.clip]
        factors = [
            0.0 if band in scaling.constant else 1 / std
            for band, std in zip(scaling.bands, scaling.std or (), strict=True)
        ]
        self.scale, self.offset = _column(scaling.scale), _column(scaling.offset)
        self.low, self.high = _column([low for low, _ in clips]), _column([high for _, high in clips])
        self.mean, self.factor = _column(scaling.mean or ()), _column(factors)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to what the encoder is fed."""
        physical = image * self.scale + self.offset if self.raw else image
        normalised = (torch.clamp(physical, self.low, self.high) - self.mean) * self.factor
        return torch.where(torch.isnan(image), 0.0, normalised)


class Exported(nn.Module):
    """What is written.

    Args:
        vit: specialised for the bands at the image size.
        maps: one answer a patch, else one an image.
        head: that reads the features; None gives them as they are.
        normalisation: None where images come normalised.
    """

    def __init__(
        self, vit: StaticViT, levels: Sequence[Block], maps: bool, head: Head | None, normalisation: nn.Module | None
    ) -> None:
        super().__init__()
        self.vit, self.levels, self.maps = vit, tuple(levels), maps
        self.task = None if head is None else head.task
        self.normalisation = normalisation
        if head is not None:
            self.weight = nn.Buffer(torch.from_numpy(head.weight))
            self.bias = nn.Buffer(torch.from_numpy(head.bias))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) to (B, K) an output, or to (B, K, h, w) maps."""
        if self.normalisation is not None:
            image = self.normalisation(image)
        features = level_features(self.vit, self.vit.forward_intermediates, image, self.levels, self.maps)
        if self.task is None:
            return features
        # In float64, as `Head.apply` says.
        joined = torch.cat(list(features.values()), dim=1).double().movedim(1, -1)
        answer = (joined @ self.weight.T + self.bias).movedim(-1, 1).float()
        if self.task == "regression":
            return {"values": answer}
        # `Head.probabilities`, as torch can trace it.
        return {"logits": answer, "probabilities": answer.sigmoid() if self.task == "multilabel" else answer.softmax(1)}


def _column(values: Sequence[float]) -> nn.Buffer:
    return nn.Buffer(torch.tensor(values, dtype=torch.float32)[:, None, None])


# -- A model on disk as a program that needs nothing of dofa: written, read back, and compared with the model itself.

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
        images: (B, C, H, W).
        expected: the model's own outputs, by name.

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
