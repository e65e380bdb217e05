"""One small life of the project by its command line, and the numbers it leaves.

`python -m tests.recorded.recording` writes numbers.json and written.tar.xz anew: only where a result is meant to
change, which the change log then says.
"""

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import torch
import yaml
import zarr
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import dofa
from dofa.cli import main
from dofa.model.checkpoint import load_mae, save

HERE = Path(__file__).parent
ARCHIVE = HERE / "written.tar.xz"  # folders as that code wrote them; weights are rounded
SAMPLES = Path(dofa.__file__).parent / "samples"
LABELS = HERE.parents[1] / "docs" / "own-labels.geojson"
SCENES = {"s2": "sentinel-2-l2a/ssl4eo_june.tif", "naip": "naip-rgbn/east_2016.tif"}
SENSORS = {"s2": "sentinel-2-l2a", "naip": "naip-rgbn"}
STORED = {
    "s2": ["sentinel-2-l2a/bigearthnet.tif", "sentinel-2-l2a/ssl4eo_june.tif"],
    "naip": [f"naip-rgbn/{side}_{year}.tif" for side in ("west", "east") for year in (2012, 2020)],
}
UPDATES = 12
RECIPE = {
    "model": {
        "size": "tiny",
        "changes": {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32},
        "decoder": {"width": 32, "depth": 1, "heads": 2},
    },
    "data": {"stores": ["stores/s2", "stores/naip"], "crop": 32, "batch": 8, "band_keep": 0.75},
    "run": {"out": "run", "updates": UPDATES, "micro_batches": 2, "device": "cpu", "log_every": 1, "workers": 0},
}


def dofa_of(line: str, *more: str) -> None:
    """Run a command; it succeeds."""
    assert main([*line.split(), *more]) == 0, line


def train() -> dict[str, Any]:
    """Pack two stores and pretrain on them, in the working directory."""
    Path("pretrain.yaml").write_text(yaml.safe_dump(RECIPE))
    for name, files in STORED.items():
        sources = [str(SAMPLES / file) for file in files]
        dofa_of(f"pack images --store stores/{name} --sensor {SENSORS[name]} --tile 40 --workers 1", *sources)
    dofa_of("pretrain --config pretrain.yaml")
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    return {
        "stores": {name: store(Path("stores") / name) for name in STORED},
        "losses": [{k: v for k, v in line.items() if k.startswith("loss")} for line in lines],
        "weights": {name: summary(array) for name, array in load_file("run/model/model.safetensors").items()},
    }


def use() -> dict[str, Any]:
    """Embed, cut, probe, fine-tune and map with the folder `model`, in the working directory."""
    found: dict[str, Any] = {}
    for name, file in SCENES.items():
        for ending in ("tif", "zarr", "parquet"):
            level = "tile" if ending == "parquet" else "patch"
            told = f"--weights model --sensor {SENSORS[name]} --level {level} --dtype float32 --device cpu"
            dofa_of(f"embed --out {name}.{ending} --tile 32 --precision float32 {told}", str(SAMPLES / file))
        with rasterio.open(f"{name}.tif") as file:
            found[f"{name}.tif"] = {"place": [*file.transform[:6], file.crs.to_epsg()], **summary(file.read())}
        found[f"{name}.zarr"] = {k: summary(a) for k, a in arrays(zarr.open_group(f"{name}.zarr", mode="r"))}
        frame = geopandas.read_parquet(f"{name}.parquet")
        place = {"bounds": frame.total_bounds.tolist(), "columns": list(frame)}
        found[f"{name}.parquet"] = {**place, **summary(np.stack(frame["vector"]))}
    for task, size, more in (("segmentation", 32, "--stride 4 --pixels 1500"), ("classification", 16, "")):
        rasters = [str(SAMPLES / f"naip-rgbn/{side}_2016.tif") for side in ("west", "east")]
        labels = f"--labels {LABELS} --class-field class --sensor naip-rgbn"
        dofa_of(f"chips --task {task} --size {size} {labels} --out {task}", *rasters)
        told = f"--weights model --data chips:{task} --device cpu --cache cache --random-seeds 1"
        dofa_of(f"probe --out {task}-probe {told} {more}")
        rows = json.loads(Path(f"{task}-probe/probe.json").read_text())["rows"]
        found[task] = {"chips": summary(np.load(f"{task}/images.npy")), "scores": [row["score"] for row in rows]}
    told = "--weights model --data chips:segmentation --device cpu"
    dofa_of(f"finetune --method frozen --decoder linear --epochs 3 --batch 4 --out tuned {told}")
    found["finetune"] = json.loads(Path("tuned/finetune.json").read_text())["score"]["value"]
    return {**found, **maps()}


def maps() -> dict[str, Any]:
    """Map a scene with the heads in the working directory: the share of each class, and probabilities."""
    scene = str(SAMPLES / SCENES["naip"])
    told = "--device cpu --overwrite"
    dofa_of(f"predict --weights model --head segmentation-probe/head --out map.tif {told}", scene)
    dofa_of(f"predict --head segmentation-probe/band-statistics --out statistics.tif {told}", scene)
    dofa_of(f"predict --weights model --head tuned/head --output probabilities --out p.tif {told}", scene)
    found: dict[str, Any] = {}
    for name in ("map", "statistics"):
        with rasterio.open(f"{name}.tif") as file:
            values, counts = np.unique(file.read(), return_counts=True)
        found[name] = {str(value): float(count / counts.sum()) for value, count in zip(values, counts, strict=True)}
    with rasterio.open("p.tif") as file:
        found["p"] = summary(file.read())
    return found


def arrays(group: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays of a Zarr group, but for those of text."""
    for name, array in sorted(group.arrays()):
        values = array[...]
        if np.asarray(values).dtype.kind in "fiub":
            yield name, np.asarray(values)


def store(folder: Path) -> dict[str, Any]:
    """Digests of a packed store's arrays, which no processor changes."""
    ((_, sensor),) = zarr.open_group(folder, mode="r").groups()
    digests = {}
    for name, array in sorted(sensor.arrays()):
        values = np.asarray(array[...])
        texts = json.dumps(values.tolist()).replace(str(SAMPLES), "samples").encode()
        content = values.tobytes() if values.dtype.kind in "fiub" else texts
        digests[name] = hashlib.sha256(content).hexdigest()[:16]
    return digests


def summary(array: NDArray[Any]) -> dict[str, Any]:
    """Shape, and sums that any change of a value or of their order moves."""
    flat = array.astype(np.float64).ravel()
    good = np.isfinite(flat)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], flat.size)
    return {
        "shape": list(array.shape),
        "missing": int((~good).sum()),
        "size": float(np.abs(flat[good]).mean()) if good.any() else 0.0,
        "signed": float((flat * signs)[good].mean()) if good.any() else 0.0,
    }


def coarse(file: Path) -> None:
    """Round weights to 1/64: they are as good for a test, and a tenth of the size in an archive."""
    save_file({k: np.asarray(np.round(array * 64) / 64, array.dtype) for k, array in load_file(file).items()}, file)


def write() -> None:
    """Record everything anew."""
    found = {"train": train()}
    model = load_mae("run/model")
    with torch.no_grad():
        for values in model.state_dict().values():
            values.copy_(torch.round(values * 64) / 64)
    save(model, "model")
    for file in Path("run/checkpoints").rglob("*.safetensors"):
        coarse(file)
    shutil.rmtree("run/model")
    found["use"] = use()
    (HERE / "numbers.json").write_text(json.dumps(found, indent=1) + "\n")
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        for name in ("stores", "run", "model", "segmentation", "segmentation-probe", "tuned"):
            archive.add(name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made, chdir(made):
        write()
