"""Commands on addresses with passwords and signatures: no byte that they write or print holds one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..scene.conftest import model_and_head, write_tiff

SECRETS = ("hunter2", "s3cr3t")
OPENING = ["--sensor", "sentinel-2-l2a", "--dn-offset", "0"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A scene, labels, a model with a head, and a store, behind a server that is asked with both secrets."""
    from dofa.corpus.items import Reading
    from dofa.corpus.pack import pack
    from dofa.pixels import Scaling
    from dofa.sensors import Band, Sensor

    root = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(0)
    image = (500 + 4000 * rng.random((4, 96, 96))).astype(np.uint16)
    write_tiff(root / "scene.tif", image, names=["B02", "B03", "B04", "B08"], nodata=0)
    mask = np.repeat(np.repeat(rng.integers(1, 3, (1, 12, 12)), 8, 1), 8, 2).astype(np.uint8)
    write_tiff(root / "labels.tif", mask, nodata=0)
    model_and_head(root, root / "scene.tif")
    names = ["b1", "b2"]
    sensor = Sensor("toy", tuple(Band(n, 0.5 + 0.1 * i) for i, n in enumerate(names)), gsd_m=10,
                    scaling=Scaling.uniform("reflectance", names, scale=1e-4))  # fmt: skip
    images = rng.integers(1, 9000, (12, 2, 32, 32), dtype=np.uint16)
    pack(Reading.from_arrays(sensor, images, [f"p{n}" for n in range(12)]), root / "store", progress=False)
    script = Path(__file__).parents[1] / "flaky_server.py"
    with subprocess.Popen([sys.executable, str(script), str(root)], stdout=subprocess.PIPE, text=True) as running:
        address = f"http://me:{SECRETS[0]}@127.0.0.1:{running.stdout.readline().strip()}"
        yield root, lambda name: f"{address}/{name}?sv=1&sig={SECRETS[1]}&se=2"
        running.terminate()


def dofa(*words: str, status: int = 0) -> str:
    """What a command prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "dofa", *map(str, words)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def check(said: str, folder: Path) -> None:
    """No secret in what was printed, in a file or in its name."""
    for secret in SECRETS:
        assert secret not in said
        for file in folder.rglob("*"):
            assert secret not in str(file)
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.tif", "x.zarr", "x.parquet"])
def test_features_and_maps(served, tmp_path, name):
    root, url = served
    said = dofa(
        "embed", url("scene.tif"), "--weights", root / "model", *OPENING, "--stats", "scene", "--out", tmp_path / name
    )
    predicted = ["predict", url("scene.tif"), "--weights", root / "model", "--head", root / "head", "--dn-offset", "0"]
    said += dofa(*predicted, "--out", tmp_path / f"map-{name}")
    said += dofa("info", url("scene.tif"), *OPENING)
    said += dofa(
        "embed", url("nowhere.tif"), "--weights", root / "model", *OPENING, "--out", tmp_path / "n.tif", status=2
    )
    check(said, tmp_path)


@pytest.mark.slow
def test_chips(served, tmp_path):
    root, url = served
    said = dofa(
        "chips",
        url("scene.tif"),
        "--labels",
        root / "labels.tif",
        *OPENING,
        "--size",
        "8",
        "--block",
        "1",
        "--out",
        tmp_path / "chips",
    )
    said += dofa(
        "probe",
        "--weights",
        root / "model",
        "--data",
        f"chips:{tmp_path / 'chips'}",
        "--out",
        tmp_path / "probe",
        "--stats",
        "dataset",
    )
    check(said, tmp_path)


@pytest.mark.slow
def test_pretraining_goes_on_with_another_signature(served, tmp_path):
    _, url = served
    settings = ["updates=2", "save_every=1", "evaluate_every=0", "pictures_every=0", f"out={tmp_path / 'run'}"]
    run = [
        "pretrain",
        "--config",
        "cpu-tiny",
        "--set",
        *(f"run.{one}" for one in settings),
        "data.crop=16",
        "data.batch=4",
    ]
    said = dofa(*run, f'data.stores=["{url("store")}"]')
    check(said, tmp_path)
    assert "127.0.0.1" in (tmp_path / "run" / "config.yaml").read_text()
    again = url("store").replace(SECRETS[1], "an0ther")
    said = dofa(*run, f'data.stores=["{again}"]', "--resume")
    check(said, tmp_path)
    assert "an0ther" not in said
    said = dofa(*run, f'data.stores=["{url("nowhere")}"]', "--resume", status=2)
    check(said, tmp_path)
