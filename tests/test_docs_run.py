"""The commands of the README and of the pages a newcomer follows run in the order and the words they are printed in.

Each page is run in a folder of its own, where `prepare` puts files at the names the page uses. What differs from the
page stands in the tables below, each with its reason; an entry that fits no printed command fails, too.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dofa.cli import VERBS, _parser, main
from dofa.train.config import PretrainConfig
from dofa.train.recipes import load_config

from .corpus import layouts
from .test_docs import PAGES, ROOT, blocks

SHARED = Path(os.environ.get("DOFA_SHARED", ROOT.parent / "shared"))
SHARED = SHARED if SHARED.is_dir() else Path("/work/shared")
EUROSAT = SHARED / "data/eurosat_rgb/EuroSAT_RGB_2000.zip"
HYSPECNET = SHARED / "data/enmap_hyspecnet11k"
SAMPLES = ROOT / "src/dofa/samples"
PROGRAMS = ("dofa", "torchrun", "python", "make", "pip")


def printed(page: Path) -> list[str]:
    """The command lines of a page's plain blocks, continued lines joined."""
    lines = [line for block in blocks(page, "") for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line.strip() for line in lines if line.split(" ")[0] in PROGRAMS]


def words(line: str) -> list[str]:
    """What a shell hands on: comments cut off, patterns of file names expanded in the current folder."""
    made = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return made.stdout.split("\0")[:-1]


# -- every command is one of ours ------------------------------------------------------------------------------------


def dofa_commands() -> Iterator[tuple[str, str]]:
    """Page and command line of each `dofa …` printed anywhere, under torchrun too."""
    for page in [*PAGES, *sorted((ROOT / "src/dofa/recipes").glob("*.yaml"))]:
        text = re.sub(r"\\\n(# )?\s*", "", page.read_text(encoding="utf-8"))
        for line in re.findall(r"^(?:#\s+|\$ )?((?:torchrun [^\n]*)?dofa [^\n]*)$", text, re.M):
            line = re.sub(r"\s(#|&&|>|2>) .*", "", line)
            if line[line.index("dofa") :].split()[1] in VERBS and not re.search("[…`)]|, ", line):
                yield page.name, line


@pytest.mark.parametrize(("page", "line"), list(dict.fromkeys(dofa_commands())))
def test_every_printed_command_has_options_that_exist(page: str, line: str) -> None:
    from importlib import import_module

    said = shlex.split(line)
    launched, said = said[: said.index("dofa")], said[said.index("dofa") + 1 :]
    module, function = VERBS[said[0]].target.split(":")
    parser = _parser(said[0], VERBS[said[0]], getattr(import_module(module), function))
    settings = vars(parser.parse_args(said[1:]))
    if said[0] != "pretrain" or not settings["config"] or settings["config"].endswith(".yaml"):
        return
    config = load_config(settings["config"], settings.get("set", []))
    counts = dict(pairwise(launched))
    world = int(counts.get("--nnodes", 1)) * int(counts.get("--nproc-per-node", 1))
    assert config.run.micro_batches % world == 0, f"{config.run.micro_batches} micro-batches on {world} processes"
    if launched:  # as many images an update as the recipe's learning rate is for
        assert images(config) == images(load_config(settings["config"]))


def images(config: PretrainConfig) -> int:
    """Images of an update, of a sensor without a batch of its own."""
    batch = config.data.batch
    return config.run.micro_batches * (batch if isinstance(batch, int) else batch["default"])


# -- what the names of a page mean -----------------------------------------------------------------------------------


def link(folder: Path, **files: Path) -> None:
    """Put files at names in a folder; `__` is a slash, and the suffix of the target is added where it has one."""
    for name, target in files.items():
        at = folder / name.replace("__", "/")
        at = at.with_name(at.name + target.suffix)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(target)


def tiny_model(folder: Path, *packed: list[str]) -> None:
    """A small encoder with its decoder, taught the packed sensors by two updates, in place of one that took minutes."""
    for words in packed:
        assert main(["pack", *words, "--store", f"{folder}.corpus"]) == 0
    run = ["run.updates=2", f"run.out={folder}.run", f"data.stores=[{folder}.corpus]", *TWO[2:]]
    assert main(["pretrain", "--config", "cpu-tiny", "--set", *run]) == 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{folder}.run/model").rename(folder)


def sample(sensor: str) -> list[str]:
    """What packs the samples of a sensor."""
    return ["images", str(SAMPLES / sensor), "--sensor", sensor, "--tile", "64", "--split", "none"]


def eurosat(path: Path) -> None:
    """200 real images in the published layout."""
    if not EUROSAT.is_file():
        pytest.skip(f"{EUROSAT} is not here")
    with zipfile.ZipFile(EUROSAT) as whole, zipfile.ZipFile(path, "w") as part:
        taken: dict[str, int] = {}
        for name in whole.namelist():
            kind = name.rsplit("/", 1)[0]
            if name.endswith(".jpg") and taken.setdefault(kind, 0) < 20:
                taken[kind] += 1
                part.writestr(name, whole.read(name))


def halves(scene: Path, path: Path) -> None:
    """Two classes drawn on a scene: its western and its eastern half."""
    import rasterio

    with rasterio.open(scene) as raster:
        west, south, east, north = raster.bounds
    middle = (west + east) / 2
    features = [
        {
            "type": "Feature",
            "properties": {"class": name},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[a, south], [b, south], [b, north], [a, north], [a, south]]],
            },
        }
        for name, a, b in (("west", west, middle), ("east", middle, east))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def scenes(folder: Path) -> None:
    """scene.tif, scenes/ and 2024/ of Sentinel-2, MODEL, and probe/head learned on scene.tif."""
    june = SAMPLES / "sentinel-2-l2a/ssl4eo_june.tif"
    link(folder, scene=june)
    link(folder, huge=june)
    for name in ("scenes", "2024"):
        link(folder, **{f"{name}__{p.stem}": p for p in (SAMPLES / "sentinel-2-l2a").glob("*.tif")})
    tiny_model(folder / "MODEL", sample("naip-rgbn"), sample("sentinel-2-l2a"))
    halves(folder / "scene.tif", folder / "halves.geojson")
    cut = ["chips", "scene.tif", "--sensor", "sentinel-2-l2a", "--labels", "halves.geojson", "--size", "32"]
    assert main([*cut, "--task", "segmentation", "--out", "halves"]) == 0
    judge = ["probe", "--weights", "MODEL", "--data", "chips:halves", "--no-baselines", "--pixels", "500"]
    assert main([*judge, "--out", "probe"]) == 0


def quickstart(folder: Path) -> None:
    eurosat(folder / "EuroSAT_RGB.zip")


def pretraining(folder: Path) -> None:
    assert main(["pack", *sample("naip-rgbn"), "--store", "corpus"]) == 0
    (folder / "my.yaml").write_text((ROOT / "src/dofa/recipes/cpu-tiny.yaml").read_text())


def continuing(folder: Path) -> None:
    """Flights of a camera, Satlas as it unpacks, and a model of its sensors."""
    import rasterio

    (camera,) = blocks(ROOT / "docs/continue.md", "yaml")
    (folder / "my-camera.yaml").write_text(camera)
    (folder / "flights").mkdir()
    for n, path in enumerate(sorted((SAMPLES / "naip-rgbn").glob("*.tif"))):
        with rasterio.open(path) as raster:
            red, green, blue, nir = raster.read().astype(np.uint16) * 128
            profile = raster.profile
        profile |= {"dtype": "uint16", "count": 4, "photometric": "minisblack", "driver": "GTiff"}
        profile["transform"] = profile["transform"].translation(5000 * n, 0) @ profile["transform"]
        with rasterio.open(folder / f"flights/{path.name}", "w", **profile) as out:
            out.write(np.stack([blue, green, red, nir]))
            out.descriptions = ("blue", "green", "red", "nir")
    layouts.satlas_s2(folder / "satlas/sentinel2")
    layouts.satlas_naip(folder / "satlas/naip")
    satlas = [["satlas-s2", "satlas/sentinel2"], ["satlas-naip", "satlas/naip"]]
    tiny_model(folder / "runs/first/model", *satlas)


def readme(folder: Path) -> None:
    eurosat(folder / "EuroSAT_RGB.zip")
    scenes(folder)
    naip = SAMPLES / "naip-rgbn"
    link(folder, **{"2016": naip / "east_2016.tif", "2020": naip / "east_2020.tif"})
    link(folder, fields=ROOT / "docs/own-labels.geojson")
    (folder / "DATA").mkdir()
    if not HYSPECNET.is_dir():
        pytest.skip(f"{HYSPECNET} is not here")
    (folder / "hyspecnet-11k").symlink_to(HYSPECNET)


# -- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """How a page is run.

    Attributes:
        prepare: puts files at the names that the page uses.
        left_out: beginnings of commands that are not run, and why.
        shorter: beginnings of commands that take long as printed, and the words that are added here.
    """

    prepare: Callable[[Path], None]
    left_out: dict[str, str] = field(default_factory=dict)
    shorter: dict[str, list[str]] = field(default_factory=dict)


INSTALLS = "installs packages: make demo and make test do in CI"
SMALL = "model.changes={patch: 8, image_size: 96, width: 48, depth: 2, heads: 3}"
TWO = ["--set", "run.updates=2", "run.pictures_every=0", SMALL]  # printed: 600 and 3,000 updates of 12 blocks

RUN = {
    "quickstart.md": Page(
        quickstart,
        {"make demo": INSTALLS, "python tools/install_torch.py": INSTALLS},
        {"dofa pretrain": TWO},
    ),
    "pretraining.md": Page(
        pretraining,
        {"torchrun": "8 and 32 GPUs; parsed and planned above, a line on two processes below"},
        {"dofa pretrain --config cpu-tiny": TWO},
    ),
    "continue.md": Page(
        continuing,
        {"python benchmarks/continue_landsat.py": "hours; needs the model and the store of another benchmark"},
        {"dofa pretrain": ["--set", "run.updates=2"]},
    ),
    "features.md": Page(scenes, {"python benchmarks/seams.py": "a benchmark: an hour"}),
    "cluster.md": Page(scenes),
    "README.md": Page(
        readme,
        {
            "make": INSTALLS,
            "python tools/install_torch.py": INSTALLS,
            "pip": INSTALLS,
            "torchrun": "4 GPUs and a web server; parsed and planned above",
        },
        {
            "dofa chips": ["--size", "16"],  # rasters of 256 pixels: the corner of a quarter quad of 10,000
            "dofa finetune": ["--epochs", "1", "--warmup-epochs", "0"],
            "dofa pretrain": TWO,
        },
    ),
}  # own-labels.md and analyst.md: tests/datasets; checkpoints.md: model/test_released_full.py


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Dask scheduler with a worker, in place of the one of the pages."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(RUN))
def test_the_commands_of_a_page_run_as_printed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    page = RUN[name]
    for part in ("src", "docs", "tools"):
        (tmp_path / part).symlink_to(ROOT / part)
    monkeypatch.chdir(tmp_path)
    page.prepare(tmp_path)
    lines = printed(ROOT / name if name == "README.md" else ROOT / "docs" / name)
    assert lines
    for known in (*page.left_out, *page.shorter):
        assert any(line.startswith(known) for line in lines), f"no command begins with {known}"
    for line in lines:
        if any(line.startswith(known) for known in page.left_out):
            continue
        added = [w for known, more in page.shorter.items() if line.startswith(known) for w in more]
        if "tcp://10.0.0.5:8786" in line:
            line = line.replace("tcp://10.0.0.5:8786", request.getfixturevalue("address"))
        call = [*words(line), *added]
        assert call[0] == "dofa", f"{line} is neither ours nor left out with a reason"
        torch.set_num_threads(1)
        assert main(call[1:]) == 0, f"{line}\n{capfd.readouterr().err[-2000:]}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_launch_line_of_two_processes_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pretraining(tmp_path)
    lines = [line for line in printed(ROOT / "docs/pretraining.md") if line.startswith("torchrun --nproc-per-node 2 ")]
    (line,) = lines
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PET_STANDALONE": "1",  # torchrun's own free port: 29500 may be another test's
    }.items():
        monkeypatch.setenv(name, value)
    answer = subprocess.run(
        ["bash", "-c", f"{line} {shlex.join(TWO)}"], capture_output=True, text=True, timeout=280, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "on 2 × cpu" in answer.stderr
    assert (tmp_path / "runs/cpu-tiny/model/config.json").is_file()
