"""The model a pretraining run trains: made or loaded, told of its sensors, wrapped as one callable, saved."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import dofa
from dofa.corpus.items import Split
from dofa.corpus.store import SensorStore
from dofa.model.checkpoint import create, load, load_mae, save
from dofa.model.config import TrainedSensor
from dofa.model.mae import MaskedAutoencoder
from dofa.pixels import Scaling, resolve_stats
from dofa.sensors import Sensor
from dofa.train.config import ModelConfig


class MaskedImageModelling(nn.Module):
    """A masked autoencoder as a function of one micro-batch, for the strategy (DDP, fully_shard) to wrap.

    Wavelengths are looked up in here, so that only tensors, names and numbers pass through the wrapper.

    Args:
        mae: encoder and decoder.
        sensors: by the names micro-batches call them.
    """

    def __init__(self, mae: MaskedAutoencoder, sensors: Mapping[str, Sensor]) -> None:
        super().__init__()
        self.mae = mae
        self.sensors = dict(sensors)

    def forward(self, batch: dict[str, Any], want: str = "loss") -> Tensor:
        """The batch's `loss` (scalar), `image_loss` (B,), or `reconstruction` (B, C, H, W).

        Args:
            batch: `image`, `noise`, `valid`, `sensor` and, where not all bands are in it, `bands`.
            want: which.
        """
        sensor = self.sensors[batch["sensor"]]
        if len(batch.get("bands", sensor.bands)) < len(sensor.bands):
            # Without the rest of the sensor, which a selection by names would carry along band by band.
            bands = tuple(sensor.bands[i] for i in batch["bands"])
            sensor = replace(sensor, bands=bands, scaling=None, renderings={})
        given = batch["image"], sensor, batch["noise"], batch["valid"]
        out: Tensor = self.mae.reconstruct(*given) if want == "reconstruction" else self.mae(*given)[want]
        return out


def build_model(config: ModelConfig) -> MaskedAutoencoder:
    """A new model of the configured size, or the one that `init` names, with its decoder where it has one."""
    if config.init is None:
        return MaskedAutoencoder(create(config.size, **config.changes), config.decoder, config.mask)
    record = Path(config.init) / "config.json"
    if record.is_file() and "decoder" in json.loads(record.read_text(encoding="utf-8")):
        mae = load_mae(Path(config.init))
        mae.mask_config = config.mask
    else:
        mae = MaskedAutoencoder(load(config.init), config.decoder, config.mask)
    return mae


def learn_sensors(mae: MaskedAutoencoder, stores: Mapping[str, SensorStore]) -> dict[str, Scaling]:
    """Write into the model's configuration which numbers stand for the sensors it is about to be trained on.

    A sensor the model knows keeps the wavelengths and statistics it was trained with; a new one gets the catalogue's
    wavelengths and the store's statistics.

    Returns:
        How each sensor's raw values are normalised.

    Raises:
        ConfigError: the model knows the sensor in another unit or without some band.
    """
    encoder = mae.encoder
    known = {name: trained.scaling for name, trained in encoder.config.sensors.items()}
    scalings, learned = {}, {}
    for name, store in stores.items():
        scalings[name] = resolve_stats(store.scaling, name, checkpoint=known, store=store.scaling)
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


def save_model(module: MaskedImageModelling, folder: Path, provenance: dict[str, Any], *, write: bool) -> None:
    """Write the native model folder; every process must call it, for sharded tensors are gathered."""
    mae = module.mae
    if not any(isinstance(p, DTensor) for p in mae.parameters()):
        if write:
            save(mae, folder, provenance=provenance)
        return
    tensors = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in mae.state_dict().items()}
    if write:
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


def code_version() -> str:
    """The version of this package, for the provenance of weights."""
    return f"dofa {dofa.__version__}"
