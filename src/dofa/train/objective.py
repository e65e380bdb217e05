"""The model a pretraining run trains: made or loaded, told of its sensors, wrapped as one callable, saved."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dofa.corpus.items import Split
from dofa.corpus.store import SensorStore
from dofa.documents import as_mapping, read_json
from dofa.errors import CheckpointError, ConfigError
from dofa.model.checkpoint import create, load, load_mae, save
from dofa.model.config import DistillConfig, TrainedSensor, preset
from dofa.model.distill import Distillation, patch_validity, reduce_tokens
from dofa.model.encoder import Wavelengths
from dofa.model.mae import MaskedAutoencoder, split_patches
from dofa.model.prefit import RGB_UM, initialise, prefit
from dofa.model.separate import SeparatePatchEmbedding
from dofa.model.teacher import Teacher
from dofa.model.vit import block_indices, recompute_activations
from dofa.pixels import Scaling, resolve_stats
from dofa.sensors import Sensor
from dofa.train.config import ModelConfig
from dofa.train.teacher_inputs import display_scaling

MANY_BANDS = 64  # from here on memory is shorter than time


class Pretraining(nn.Module):
    """Masked image modelling and distillation as one function of a micro-batch, for the strategy to wrap.

    Wavelengths are looked up in here, so that only tensors, names and numbers pass through the wrapper. What no loss
    reaches is frozen: the decoder where nothing is reconstructed, blocks behind the last one that is distilled.

    Args:
        mae: encoder and decoder.
        sensors: by the names micro-batches call them.
        distill: how the student is held to the teacher.
        teacher: frozen, on its device and in its precision; None where micro-batches bring its answers.
        width: of the teacher, where its answers are distilled; None for no distillation.
        anchor: the teacher's patch kernel (3·p·p, D) and bias (D,) that the generated ones are held to.

    Attributes:
        parts: names of the numbers given beside the loss.

    Raises:
        ConfigError: blocks that are not there, or a teacher of another width without a projector.
    """

    anchor_weight: Tensor
    anchor_bias: Tensor

    def __init__(
        self,
        mae: MaskedAutoencoder,
        sensors: Mapping[str, Sensor],
        distill: DistillConfig = DistillConfig(),  # noqa: B008  frozen
        teacher: Teacher | None = None,
        width: int | None = None,
        anchor: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.mae = mae
        self.sensors = dict(sensors)
        self.config = distill
        # In a tuple it is no part of the module: neither trained, nor saved, nor sharded.
        self._teacher = (teacher,)
        depth = len(mae.encoder.blocks)
        self.blocks = named_blocks("distill.blocks", distill.blocks, depth) if width is not None else []
        self.distillation = None if width is None else Distillation(distill, mae.encoder.config.width, width)
        self.parts = [name for name, used in self._used(anchor is not None).items() if used]
        if anchor is not None:
            self.register_buffer("anchor_weight", anchor[0], persistent=False)
            self.register_buffer("anchor_bias", anchor[1], persistent=False)
        if not distill.reconstruction:
            freeze_unused(mae, self.blocks)

    def _used(self, anchored: bool) -> dict[str, bool]:
        distilled = self.distillation is not None
        return {
            "masked": distilled and bool(self.config.reconstruction),
            "distilled": distilled,
            "anchor": anchored,
        }

    def forward(self, batch: dict[str, Any], want: str = "losses") -> Any:
        """The losses of a batch, or what masked image modelling makes of it.

        Args:
            batch: `image`, `noise`, `valid`, `sensor` and, where not all bands are in it, `bands`; for distillation
                `pictures` or `target`, and for the view proxy `proxy` and `proxy_bands`.
            want: `losses`, a dict with `loss` and its `parts`, scalars; `image_loss` (B,); or `reconstruction`
                (B, C, H, W).
        """
        sensor = self.sensors[batch["sensor"]]
        bands = batch.get("bands")
        if bands is not None and list(bands) != list(range(len(sensor.bands))):
            # Without the rest of the sensor, which a selection by names would carry along band by band.
            sensor = replace(sensor, bands=tuple(sensor.bands[i] for i in bands), scaling=None, renderings={})
        given = batch["image"], sensor, batch["noise"], batch["valid"]
        if not torch.compiler.is_compiling():
            # Two passes of the student are in memory at once. With many bands their pixels are too, and the time that
            # computing again takes is a smaller part of the step.
            two = self.distillation is not None and self.config.view != "visible"
            recompute_activations(self.mae, two and batch["image"].shape[1] >= MANY_BANDS)
        if want == "reconstruction":
            return self.mae.reconstruct(*given)
        if want != "losses":
            return self.mae(*given)[want]
        visible = self.distillation is not None and self.config.view == "visible"
        losses: dict[str, Tensor] = {}
        levels: list[Tensor] = []
        keep: Tensor | None = None
        if self.config.reconstruction:
            out = self.mae(*given, blocks=self.blocks if visible else ())
            losses["masked"], levels, keep = out["loss"], out["levels"], out["keep"]
        if self.distillation is not None:
            if not visible:
                levels, keep = self._second_pass(batch, sensor), None
            elif not self.config.reconstruction:
                keep = split_patches(batch["noise"], self.mae.mask_config.ratio)[0]
                levels = self.mae.encoder.forward_visible(batch["image"], sensor, keep, self.blocks, no_deeper=True)[2]
            grid = batch["image"].shape[-1] // self.mae.patch
            target = batch["target"] if "target" in batch else self.teach(batch["pictures"], grid)
            weight = None if batch["valid"] is None else patch_validity(batch["valid"], self.mae.patch)
            losses["distilled"] = self.distillation(levels, target, keep, weight)
        if "anchor" in self.parts:
            losses["anchor"] = self._anchor_distance()
        weights = {
            "masked": self.config.reconstruction,
            "distilled": self.config.weight,
            "anchor": self.config.anchor,
        }
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return {**losses, "loss": loss}

    def teach(self, pictures: Tensor, grid: int) -> Tensor:
        """The teacher's features, averaged over the pictures.

        Args:
            pictures: (B, R, 3, h, w), in [0, 1] or, with the input `sensor`, normalised.
            grid: rows and columns of the student's patches.

        Returns:
            (B, blocks, T, D): T is 1 for pooled features, else the number of patches.
        """
        teacher = self._teacher[0]
        if teacher is None:
            raise ConfigError("this objective has no teacher to ask: micro-batches must bring its answers")
        batch, count = pictures.shape[:2]
        blocks = self.config.teacher_blocks or self.config.blocks
        found = teacher(pictures.flatten(0, 1), blocks, (grid, grid), normalised=self.config.input == "sensor")
        levels = [reduce_tokens(tokens.float(), self.config.target) for tokens in found]
        return torch.stack([level.reshape(batch, count, *level.shape[1:]).mean(1) for level in levels], dim=1)

    def _second_pass(self, batch: dict[str, Any], sensor: Sensor) -> list[Tensor]:
        """(B, 1 + N, D) of the distilled blocks from an unmasked pass, as deep as they lie."""
        image, bands = batch["image"], sensor
        if self.config.view == "proxy":
            image, whole = batch["proxy"], self.sensors[batch["sensor"]]
            chosen = tuple(whole.bands[i] for i in batch["proxy_bands"])
            # A sensor names no band twice; SAR's proxy does, and knows no wavelengths of its own anyway.
            repeated = len(set(batch["proxy_bands"])) < len(chosen)
            three = chosen if repeated else replace(whole, bands=chosen, scaling=None, renderings={})
            return self._levels(image, three)
        return self._levels(image, bands)

    def _levels(self, image: Tensor, bands: Wavelengths) -> list[Tensor]:
        pairs = cast(
            list[tuple[Tensor, Tensor]],
            self.mae.encoder.forward_intermediates(
                image, bands, self.blocks, output_fmt="NLC", return_prefix_tokens=True
            ),
        )
        return [torch.cat([cls, patches], dim=1) for patches, cls in pairs]

    def _anchor_distance(self) -> Tensor:
        """Squared distance of the kernel at red, green and blue from the teacher's, relative to the latter."""
        encoder = self.mae.encoder
        weight, bias, _ = encoder.patch_embed.kernel(encoder.encode_bands(RGB_UM))
        square = (weight - self.anchor_weight).square().sum() + (bias - self.anchor_bias).square().sum()
        return square / (self.anchor_weight.square().sum() + self.anchor_bias.square().sum())


def named_blocks(setting: str, blocks: Sequence[int], depth: int) -> list[int]:
    """Block numbers from 0, of a setting that an error names.

    Args:
        blocks: negative from the end.

    Raises:
        ConfigError: there is no such block.
    """
    try:
        return block_indices(blocks, depth)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None


def freeze_unused(mae: MaskedAutoencoder, blocks: Sequence[int]) -> None:
    """No gradients for the decoder and for what lies behind the last distilled block: no loss reaches them.

    Args:
        mae: changed in place.
        blocks: that are distilled, from 0.
    """
    for name, parameter in mae.named_parameters():
        if not name.startswith("encoder."):
            parameter.requires_grad_(False)
    mae.encoder.norm.requires_grad_(False)
    for block in mae.encoder.blocks[max(blocks) + 1 :]:
        block.requires_grad_(False)


def build_model(
    config: ModelConfig, teacher: Teacher | None = None, sensors: Sequence[Sensor] = ()
) -> MaskedAutoencoder:
    """A new model of the configured size, or the one that `init` names, with its decoder where it has one.

    Args:
        config: with `start`, a new model begins with the teacher's weights.
        teacher: in float32.
        sensors: whose bands `prefit` starts well, or that have a patch embedding each.
    """
    if config.init is None:
        changes = dict(config.changes)
        if changes.get("embedding") == "separate":  # its sensors make its weights; `learn_sensors` tells it the rest
            sar = preset(config.size, **changes).sar_wavelength
            changes["sensors"] = {
                s.name: TrainedSensor(s.band_names, tuple(b.wavelength_um or sar for b in s.bands)) for s in sensors
            }
        encoder = create(config.size, **changes)
        if teacher is not None and config.start != "random":
            initialise(encoder, teacher)
            if config.start == "prefit":
                prefit(encoder, teacher, sensors=sensors)
        return MaskedAutoencoder(encoder, config.decoder, config.mask)
    if brings_decoder(config.init):
        mae = load_mae(Path(config.init))
        mae.mask_config = config.mask
    else:
        mae = MaskedAutoencoder(load(config.init), config.decoder, config.mask)
    return mae


def brings_decoder(init: str) -> bool:
    """Whether what `model.init` names is a folder with a decoder, and not an encoder alone."""
    record = Path(init) / "config.json"
    if not record.is_file():
        return False
    return "decoder" in as_mapping(read_json(record, CheckpointError), str(record), CheckpointError)


def learn_sensors(
    mae: MaskedAutoencoder,
    stores: Mapping[str, SensorStore],
    statistics: str = "corpus",
    teacher: Teacher | None = None,
) -> dict[str, Scaling]:
    """Write into the model's configuration which numbers stand for the sensors it is about to be trained on.

    A sensor the model knows keeps the wavelengths and statistics it was trained with; a new one gets the catalogue's
    wavelengths and the store's statistics, or with `display` those of its pictures in the teacher's normalisation.

    Args:
        mae: changed in place.
        statistics: `corpus` or `display`.
        teacher: whose normalisation `display` takes.

    Returns:
        How each sensor's raw values are normalised.

    Raises:
        ConfigError: the model knows the sensor in another unit or without some band, or has one patch embedding a
            sensor and none for it.
    """
    encoder = mae.encoder
    apart = encoder.patch_embed.sensors if isinstance(encoder.patch_embed, SeparatePatchEmbedding) else stores
    if new := sorted(set(stores) - set(apart)):
        raise ConfigError(
            f"this model has one patch embedding a sensor and none for {', '.join(new)}: train a new one on all "
            "sensors, or one whose embedding is dynamic"
        )
    known = {name: trained.scaling for name, trained in encoder.config.sensors.items()}
    scalings, learned = {}, {}
    for name, store in stores.items():
        own = store.scaling
        if statistics == "display":
            colours = (teacher.mean.tolist(), teacher.std.tolist()) if teacher is not None else ()
            own = display_scaling(store.sensor, store.scaling, *colours)
        scalings[name] = resolve_stats(store.scaling, name, checkpoint=known, store=own)
        wavelengths, _ = encoder.band_inputs(store.sensor)
        # Through text a float32 gives back the decimal it came from, .4924 and not .49239999.
        numbers = tuple(float(str(np.float32(w))) for w in wavelengths.tolist())
        learned[name] = TrainedSensor(
            bands=store.sensor.band_names,
            wavelength_um=numbers,
            scaling=scalings[name],
            gsd_m=store.sensor.gsd_m,
            platform=store.sensor.platform,
        )
    encoder.config = replace(encoder.config, sensors={**encoder.config.sensors, **learned})
    return scalings


def save_model(
    module: Pretraining,
    folder: Path,
    provenance: dict[str, Any],
    *,
    write: bool,
    initial: Mapping[str, Tensor] | None = None,
    keep_initial: float = 0.0,
) -> None:
    """Write the native model folder; every process must call it, for sharded tensors are gathered.

    Args:
        write: whether this process writes.
        initial: the encoder's weights before training, by name.
        keep_initial: their share in what is saved.
    """
    mae = module.mae
    if not keep_initial and not any(isinstance(p, DTensor) for p in mae.parameters()):
        if write:
            save(mae, folder, provenance=provenance)
        return
    tensors = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in mae.state_dict().items()}
    if not write:
        return
    for name, before in (initial or {}).items():
        now = tensors[f"encoder.{name}"]
        tensors[f"encoder.{name}"] = torch.lerp(now, before.to(now.device), keep_initial)
    with torch.device("meta"):
        whole = MaskedAutoencoder(
            type(mae.encoder)(mae.encoder.config), mae.decoder_config, mae.mask_config, mae.legacy_layout
        )
    whole.load_state_dict(tensors, assign=True)
    whole.encoder.origin = mae.encoder.origin
    save(whole, folder, provenance=provenance)


def store_digest(store: SensorStore) -> str:
    """What a store's images, split and statistics are, in one digest, wherever it lies."""
    facts = [store.digest, store.sensor.to_dict(), store.scaling.to_dict()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for split in get_args(Split):
        digest.update(store.indices(split).tobytes())
    return digest.hexdigest()
