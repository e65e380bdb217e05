"""What the authors released: which files, and the numbers the weights were trained with. No torch here."""

from dataclasses import dataclass, replace

from dofa import sensors
from dofa.model.config import SAR_WAVELENGTH_V1, SAR_WAVELENGTH_V2, TrainedSensor

LICENCE = "CC-BY-4.0"
ATTRIBUTION = (
    "DOFA weights by Zhitong Xiong, Yi Wang, Fahong Zhang, Adam J. Stewart, Joëlle Hanna, Damian Borth, "
    "Ioannis Papoutsis, Bertrand Le Saux, Gustau Camps-Valls and Xiao Xiang Zhu (arXiv 2403.15356), "
    "https://huggingface.co/earthflow/DOFA, CC-BY-4.0; changed in form only by dofa: keys renamed, those the model "
    "does not use left out"
)


@dataclass(frozen=True)
class ReleasedFile:
    """One file of weights that a short name stands for.

    Attributes:
        repo: on the Hugging Face hub.
        file: its name there.
        num_heads: of the attention, which no tensor tells.
        sha256: the file's digest where it is known.
        decoder: whether it is the full training state, with the decoder in its published layout.
    """

    repo: str
    file: str
    num_heads: int
    sha256: str | None = None
    decoder: bool = False


# The digests of the base files are given alike by several independent users of the hub, v1 large by one beside the
# authors' prefix; for v2 large we know none.
RELEASED: dict[str, ReleasedFile] = {
    "dofa-v1-base": ReleasedFile(
        "earthflow/DOFA",
        "DOFA_ViT_base_e100.pth",
        12,
        "4720985e42b918ac0307009eb06121a3435d9bbce6fd95446f84824a538165b1",
    ),
    "dofa-v1-large": ReleasedFile(
        "earthflow/DOFA",
        "DOFA_ViT_large_e100.pth",
        16,
        "ea9910bc026268ca36c30b76fd1169aeaca9ea51af5eaff840a20f150ea03d49",
    ),
    "dofa-v1-base-full": ReleasedFile("earthflow/DOFA", "DOFA_ViT_base_e100_full_weight.pth", 12, decoder=True),
    "dofa-v2-base": ReleasedFile(
        "earthflow/DOFA",
        "dofav2_vit_base_e150.pth",
        12,
        "e1be9d50fb3e4e3640e337d098b92d67797eaf2a579de3b7a1e363095885314d",
    ),
    "dofa-v2-large": ReleasedFile("earthflow/DOFA", "dofav2_vit_large_e150.pth", 16),
}

# Heads by width, as published: arXiv 2403.15356 and its code; huge has 16, not the 20 of 64 channels a head.
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}

# What stood for each band in the published training script. The true centres (catalogue) differ.
_SENTINEL_2 = {
    "B04": 0.665,
    "B03": 0.56,
    "B02": 0.49,
    "B05": 0.705,
    "B06": 0.74,
    "B07": 0.783,
    "B08": 0.842,
    "B11": 1.61,
    "B12": 2.19,
}
_GAOFEN_2 = {"B": 0.49, "G": 0.56, "R": 0.665, "NIR": 0.83}
_NAIP = {"R": 0.665, "G": 0.56, "B": 0.49}
# fmt: off
_ENMAP_202 = (
    0.418, 0.424, 0.429, 0.435, 0.44, 0.445, 0.45, 0.454, 0.459, 0.464, 0.468, 0.473, 0.478, 0.482, 0.487, 0.492,
    0.496, 0.501, 0.506, 0.511, 0.516, 0.521, 0.525, 0.53, 0.535, 0.54, 0.546, 0.551, 0.556, 0.561, 0.566, 0.572,
    0.577, 0.583, 0.588, 0.594, 0.599, 0.605, 0.611, 0.617, 0.623, 0.629, 0.635, 0.641, 0.648, 0.654, 0.66, 0.667,
    0.673, 0.68, 0.686, 0.693, 0.7, 0.707, 0.714, 0.721, 0.728, 0.735, 0.742, 0.749, 0.756, 0.764, 0.771, 0.779,
    0.786, 0.794, 0.801, 0.809, 0.817, 0.824, 0.832, 0.84, 0.848, 0.856, 0.864, 0.872, 0.88, 0.888, 0.896, 0.902,
    0.904, 0.912, 0.912, 0.92, 0.921, 0.928, 0.931, 0.936, 0.941, 0.944, 0.951, 0.953, 0.961, 0.962, 0.969, 0.972,
    0.977, 0.983, 0.985, 0.993, 0.993, 1.004, 1.015, 1.026, 1.037, 1.048, 1.059, 1.07, 1.082, 1.093, 1.105, 1.116,
    1.128, 1.14, 1.152, 1.163, 1.175, 1.187, 1.199, 1.211, 1.223, 1.235, 1.247, 1.259, 1.271, 1.283, 1.53, 1.542,
    1.553, 1.564, 1.576, 1.587, 1.598, 1.609, 1.62, 1.631, 1.642, 1.653, 1.664, 1.675, 1.685, 1.696, 1.707, 1.718,
    1.728, 1.977, 1.986, 1.996, 2.005, 2.014, 2.024, 2.033, 2.042, 2.051, 2.06, 2.069, 2.078, 2.087, 2.096, 2.105,
    2.113, 2.122, 2.131, 2.14, 2.148, 2.157, 2.165, 2.174, 2.183, 2.191, 2.199, 2.208, 2.216, 2.225, 2.233, 2.241,
    2.249, 2.258, 2.266, 2.274, 2.282, 2.29, 2.298, 2.306, 2.314, 2.322, 2.33, 2.338, 2.346, 2.354, 2.361, 2.369,
    2.377, 2.385, 2.392, 2.4, 2.408, 2.415, 2.423, 2.43, 2.438, 2.445,
)
# fmt: on


def trained_sensors(version: int) -> dict[str, TrainedSensor]:
    """The five sensors of the released weights by catalogue name, with the numbers and statistics they learned with.

    Args:
        version: 1 or 2. The authors' v2 examples change the SAR number alone; Gaofen-2 and EnMAP are taken to follow.

    Source: the published pretraining code; the statistics are those of the catalogue's entries of the same name.
    """
    sar = SAR_WAVELENGTH_V1 if version == 1 else SAR_WAVELENGTH_V2
    enmap = dict(zip(sensors.get("enmap-202").band_names, _ENMAP_202, strict=True))
    numbers = {
        "sentinel-1-satlas": {"VV": sar, "VH": sar},
        "sentinel-2-dofa9": _SENTINEL_2,
        "gaofen-2": _GAOFEN_2,
        "naip-rgb": _NAIP,
        "enmap-202": enmap,
    }
    return {name: _trained(sensors.get(name).select(list(bands)), bands) for name, bands in numbers.items()}


def _trained(sensor: sensors.Sensor, wavelength_um: dict[str, float]) -> TrainedSensor:
    scaling = None if sensor.scaling is None else replace(sensor.scaling, stats_source="checkpoint")
    return TrainedSensor(
        bands=sensor.band_names,
        wavelength_um=tuple(wavelength_um.values()),
        scaling=scaling,
        gsd_m=sensor.gsd_m,
        platform=sensor.platform,
    )
