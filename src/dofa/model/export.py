"""`dofa export`: an encoder specialised for one sensor, with a head and the normalisation if wanted, for elsewhere.

An ONNX file or a `torch.export` program takes images of one sensor at one size, any number at once, and needs nothing
of dofa. What it expects stands in it and in a JSON file beside it.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import dofa
from dofa import sensors
from dofa.addresses import redact_values
from dofa.errors import ConfigError
from dofa.model.checkpoint import encoder_sha256, load
from dofa.model.encoder import DOFA
from dofa.model.exported_program import Exported, Normalisation, Numbers, compare, quiet, write_onnx, write_program
from dofa.model.heads import Block, Head, level_features, level_name, load_head
from dofa.model.model_folder import file_sha256
from dofa.model.vit import block_indices
from dofa.pixels import Float, Scaling, resolve_stats
from dofa.sensors import Sensor

FORMAT_VERSION = 1
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXPECTS = {
    None: "normalised values, 0 where there is no measurement",
    "physical": "physical values in {unit}, NaN where there is no measurement",
    "raw": "raw numbers of the product, NaN where there is no measurement",
}


@dataclass(frozen=True)
class Export:
    """What `dofa export` wrote.

    Attributes:
        file: the program.
        record: what it says of itself; also in the JSON file beside it.
    """

    file: Path
    record: dict[str, Any]

    def print(self) -> None:
        """One fact a line."""
        r = self.record
        print(f"image: {r['input']} of {r['sensor']}: {r['expects']}")
        for name, shape in r["outputs"].items():
            print(f"{name}: {shape}")
        print(f"checked with {r['checked']['with']}: largest relative difference {r['checked']['difference']:.1e}")
        print(f"written {self.file} and {beside(self.file).name}")


def export(
    weights: str | Path | DOFA,
    out: Path,
    sensor: str | Sensor | None = None,
    bands: Sequence[str] | None = None,
    *,
    head: str | Path | Head | None = None,
    image_size: int | None = None,
    levels: Sequence[int | str] | None = None,
    maps: bool = False,
    normalise: Literal["physical", "raw"] | None = None,
    dn_offset: float | None = None,
    overwrite: bool = False,
) -> Export:
    """Write an encoder specialised for one sensor, with a head if given, as ONNX or as a torch.export program.

    What was written is read back and run on random images against the model itself before it takes its name.

    Args:
        weights: model folder or name.
        out: file to write: .onnx, or .pt2 for a torch.export program. A .json beside it says what it expects.
        sensor: what takes the images (dofa sensors lists them); a head knows its own.
        bands: of the sensor, in the order they are fed; all unless given.
        head: head folder, trained on these weights.
        image_size: side in pixels of the images, a multiple of the patch; what the head or the weights were trained at
            unless given.
        levels: whose features: block numbers from 0 (negative from the end), and pooled, which is what is given unless
            said; a head knows its own.
        maps: answer for every patch instead of once an image; a segmentation head always does.
        normalise: put the normalisation inside, to be fed physical values (reflectance, dB, … as the JSON says) or raw
            numbers of the product; NaN then says no measurement. Unless given, images come normalised.
        dn_offset: added to raw numbers before the factor: -1000 for Sentinel-2 of baseline 04.00 on.
        overwrite: replace a file that is there.

    Returns:
        What was written.

    Raises:
        ConfigError: a sensor, band, block, size or suffix that does not fit, no statistics to normalise with, a package
            that is missing, or a file that is there.
        CheckpointError: a head of another encoder, or a program that does not give what the model gives.
        OSError: the disk refuses it; what was there before is untouched.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"{out}: name a file .onnx, or .pt2 for a torch.export program")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise ConfigError(
            f'ONNX needs {", ".join(missing)}: pip install "dofa[export]", or export a torch.export program, .pt2'
        )
    there = [path for path in (out, beside(out)) if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already: choose another name, or replace it with --overwrite")
    if dn_offset is not None and normalise != "raw":
        raise ConfigError("--dn-offset belongs to raw numbers: export with --normalise raw")
    model = weights if isinstance(weights, DOFA) else load(weights)
    if head is not None and not isinstance(head, Head):
        head = load_head(head)
    if head is not None and head.encoder_sha256 is None:
        raise ConfigError("--head: band statistics need no encoder and are not exported: export the encoder's head")
    task = resolve_task(model, sensor, bands, head, image_size, levels, maps, normalise, dn_offset or 0.0)
    module, record = task.module().eval(), task.describe()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            file = Path(folder) / out.name
            with quiet():
                run = (write_onnx if out.suffix == ".onnx" else write_program)(module, file, task.images(2)[0], record)
            difference = max(compare(run, *task.images(count), str(out)) for count in (1, 3))
            how = "onnxruntime" if out.suffix == ".onnx" else "torch.export"
            record |= {"file_sha256": file_sha256(file), "checked": {"with": how, "difference": difference}}
            beside(file).write_text(
                json.dumps(redact_values(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            for part in (file, beside(file)):
                with part.open("rb+") as opened:
                    os.fsync(opened.fileno())
            os.replace(file, out)
            os.replace(beside(file), beside(out))  # it holds the digest of the other: a torn pair shows
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    return Export(out, record)


def beside(file: Path) -> Path:
    """The JSON file of a program."""
    return file.with_suffix(".json")


@dataclass(frozen=True)
class ExportTask:
    """What is exported, settled.

    Attributes:
        model: in eval mode.
        sensor: bands in the order they are fed.
        side: of the images in pixels.
        levels: whose features.
        maps: one answer a patch, else one an image.
        head: that reads them, None for the features themselves.
        scaling: that normalises the images, with statistics; None where nobody knows.
        numbers: that the normalisation inside is fed; None where it is outside.
    """

    model: DOFA
    sensor: Sensor
    side: int
    levels: tuple[Block, ...]
    maps: bool
    head: Head | None
    scaling: Scaling | None
    numbers: Numbers | None

    def module(self) -> Exported:
        """What is written."""
        inside = None
        if self.numbers is not None and self.scaling is not None:
            inside = Normalisation(self.scaling, self.numbers)
        return Exported(self.model.specialize(self.sensor, self.side), self.levels, self.maps, self.head, inside)

    @torch.inference_mode()
    def images(self, count: int) -> tuple[Float, dict[str, Tensor]]:
        """Random images as the program is fed them, and what the model itself, through `pixels`, makes of them."""
        rng = np.random.default_rng(count)
        image = rng.normal(scale=1.5, size=(count, len(self.sensor.bands), self.side, self.side)).astype(np.float32)
        normalised = image
        if self.numbers is not None and self.scaling is not None:
            image = self.scaling.denormalise(image)
            if self.numbers == "raw":
                steps = (self.scaling.scale, self.scaling.offset)
                scale, offset = (np.asarray(step, np.float32)[:, None, None] for step in steps)
                image = (image - offset) / scale
            valid = rng.random((count, self.side, self.side)) > 0.05
            given = self.scaling.normalise if self.numbers == "raw" else self.scaling.normalise_physical
            normalised = given(image, valid)
            image = np.where(valid[:, None], image, np.float32(np.nan))

        through = partial(self.model.forward_intermediates, wavelengths=self.sensor)
        found = level_features(self.model, through, torch.from_numpy(normalised), self.levels, self.maps)
        if self.head is None:
            return image, found
        answer = self.head.apply(torch.cat(list(found.values()), dim=1))
        if self.head.task == "regression":
            return image, {"values": answer}
        return image, {"logits": answer, "probabilities": self.head.probabilities(answer)}

    def describe(self) -> dict[str, Any]:
        """What a program says of itself; plain JSON."""
        config, head, scaling = self.model.config, self.head, self.scaling
        names, width = [level_name(level) for level in self.levels], config.width
        if head is not None:
            names, width = ["values"] if head.task == "regression" else ["logits", "probabilities"], len(head.bias)
        grid = f", {self.side // config.patch}, {self.side // config.patch}" if self.maps else ""
        about_head = head and {
            "task": head.task,
            "class_names": list(head.class_names),
            "colours": [list(colour) for colour in head.colours],
            "sha256": head.sha256,
            "validation": head.validation,
        }
        return {
            "format_version": FORMAT_VERSION,
            "dofa": dofa.__version__,
            "encoder_sha256": encoder_sha256(self.model),
            "licence": self.model.origin.licence,
            "attribution": self.model.origin.attribution,
            "sensor": self.sensor.name,
            "bands": list(self.sensor.band_names),
            "wavelength_um": [round(float(number), 6) for number in self.model.band_inputs(self.sensor)[0]],
            "gsd_m": self.sensor.gsd_m if head is None else head.gsd_m,
            "input": f"float32 (batch, {len(self.sensor.bands)}, {self.side}, {self.side})",
            "expects": EXPECTS[self.numbers].format(unit=scaling and scaling.unit),
            "normalisation": self.numbers or "outside",
            "unit": None if scaling is None else scaling.unit,
            "mean": None if scaling is None else scaling.mean,
            "std": None if scaling is None else scaling.std,
            "scaling": None if scaling is None else scaling.to_dict(),
            "image_size": self.side,
            "patch": config.patch,
            "patch_offset": config.patch_offset,
            "levels": list(self.levels),
            "maps": self.maps,
            "outputs": dict.fromkeys(names, f"float32 (batch, {width}{grid})"),
            "head": about_head,
        }


def resolve_task(
    model: DOFA,
    sensor: str | Sensor | None,
    bands: Sequence[str] | None,
    head: Head | None,
    image_size: int | None,
    levels: Sequence[int | str] | None,
    maps: bool,
    numbers: Numbers | None,
    dn_offset: float,
) -> ExportTask:
    """Decide what is exported; the arguments are those of `export`.

    Raises:
        ConfigError: what does not fit together.
        CheckpointError: a head of another encoder.
    """
    known = sensors.get(sensor) if isinstance(sensor, str) else sensor
    if head is not None:
        head.require(model)
        if head.decoder is not None:
            raise ConfigError(
                f"a head with a {head.decoder.kind} decoder is not exported: map with dofa predict, or train a head "
                "with dofa finetune --decoder linear"
            )
        if known is not None and known.name != head.sensor.name:
            raise ConfigError(f"the head was trained on {head.sensor.name}, not on {known.name}: leave out --sensor")
        if bands is not None or levels is not None:
            raise ConfigError("a head knows the bands and the levels it reads: leave out --bands and --levels")
        known = head.sensor
    if known is None:
        raise ConfigError("say whose images it is for: --sensor (dofa sensors lists them), or a --head")
    known = known if bands is None else known.select(bands)
    side = image_size or (model.config.image_size if head is None else head.tile_size)
    patch = model.config.patch
    if side < patch or side % patch:
        more = patch * max(1, -(-side // patch))
        raise ConfigError(f"--image-size {side}: a multiple of the patch of {patch} pixels is needed, such as {more}")
    scaling = statistics(model, known) if head is None else head.scaling
    if numbers is not None:
        scaling = normalisable(model, known, scaling, numbers, dn_offset)
    blocks = named_blocks(levels or ("pooled",), len(model.blocks)) if head is None else head.levels
    maps = maps or (head is not None and head.task == "segmentation")
    return ExportTask(model, known, side, blocks, maps, head, scaling, numbers)


def statistics(model: DOFA, sensor: Sensor) -> Scaling | None:
    """What normalises images of a sensor, with the checkpoint's statistics; None where it has none for these bands.

    Args:
        sensor: with the bands wanted, in order.
    """
    trained = model.config.sensors.get(sensor.name)
    known = None if trained is None else trained.scaling
    if known is None or known.mean is None or not set(sensor.band_names) <= set(known.bands):
        return None
    physical = sensor.scaling
    if physical is None or physical.unit != known.unit:
        physical = Scaling.uniform(known.unit, sensor.band_names)
    return resolve_stats(physical, sensor.name, checkpoint={sensor.name: known})


def normalisable(model: DOFA, sensor: Sensor, scaling: Scaling | None, numbers: Numbers, dn_offset: float) -> Scaling:
    """The scaling that goes inside.

    Args:
        scaling: with statistics, None where there are none.
        dn_offset: added to raw numbers.

    Raises:
        ConfigError: nobody knows the statistics, or what raw numbers are.
    """
    if scaling is None:
        known = [name for name, s in model.config.sensors.items() if s.scaling is not None and s.scaling.mean]
        raise ConfigError(
            f"these weights have no statistics for {sensor.name} with bands {', '.join(sensor.band_names)} "
            f"(they know {', '.join(known) or 'no sensor'}): leave out --normalise, or export with a head"
        )
    if numbers == "physical":
        return scaling
    if sensor.scaling is None:
        raise ConfigError(f"raw numbers of {sensor.name} mean what each file says: export with --normalise physical")
    if sensor.scaling.unit != scaling.unit:
        raise ConfigError(
            f"raw numbers of {sensor.name} are {sensor.scaling.unit}, the statistics {scaling.unit}: export with "
            f"--normalise physical and feed it {scaling.unit} (dofa.pixels.convert_units)"
        )
    moved = tuple(offset + dn_offset * scale for offset, scale in zip(scaling.offset, scaling.scale, strict=True))
    return replace(scaling, offset=moved)


def named_blocks(levels: Sequence[int | str], depth: int) -> tuple[Block, ...]:
    """Levels as people write them, as numbers from 0 and `pooled`.

    Args:
        levels: `pooled`, or numbers of blocks (negative from the end).

    Raises:
        ConfigError: there is no such block, or one is named twice.
    """
    found: list[Block] = []
    for level in levels:
        if level != "pooled" and not str(level).lstrip("-").isdigit():
            raise ConfigError(f"--levels {level}: neither pooled nor the number of a block")
        found.append("pooled" if level == "pooled" else block_indices([int(level)], depth)[0])
    if len(set(found)) < len(found):
        raise ConfigError(f"--levels {' '.join(map(str, levels))} names a block twice")
    return tuple(found)
