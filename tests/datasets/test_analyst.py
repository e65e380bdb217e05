"""An analyst's page, run as it stands, and what a person can get wrong on the way."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rasterio.features import rasterize

from dofa.cli import main
from dofa.datasets.opening import LabelledImages
from dofa.errors import DataError, DofaError
from dofa.evaluation.probe import probe
from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.heads import load_head

ROOT = Path(__file__).resolve().parents[2]
EAST = "src/dofa/samples/naip-rgbn/east_2016.tif"


def test_the_page_leads_from_a_raster_and_polygons_to_a_map_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("src", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = DOFA(EncoderConfig(width=48, depth=2, heads=3, patch=8, image_size=32))
    checkpoint.save(model, tmp_path / "runs/first/model")
    page = (ROOT / "docs" / "analyst.md").read_text(encoding="utf-8").replace("\\\n", " ")
    path = [shlex.split(line) for line in page.splitlines() if line.startswith("dofa ")]
    assert [words[1] for words in path] == ["chips", "probe", "predict"]
    for words in path:
        assert main(words[1:]) == 0
    for name in ("head", "band-statistics"):
        head = load_head(f"runs/land-probe/{name}")
        assert (head.task, head.gsd_m) == ("segmentation", 5.0)
    assert json.loads(Path("runs/land-probe/probe.json").read_text())["verdict"]["kind"] == "band statistics"
    drawn = geopandas.read_file("docs/own-labels.geojson")
    with rasterio.open("runs/land-map.tif") as mapped, rasterio.open(EAST) as scene:
        assert (mapped.bounds, mapped.crs) == (scene.bounds, scene.crs)
        assert mapped.res == (5, 5)  # band statistics are of every pixel
        shapes = [
            (shape, 1 + head.class_names.index(name))
            for shape, name in zip(drawn.to_crs(scene.crs.to_wkt()).geometry, drawn["class"], strict=True)
        ]
        said = rasterize(shapes, mapped.shape, transform=mapped.transform)
        values = mapped.read(1)
    judged = said > 0
    assert judged.sum() > 30_000
    assert (values[judged] + 1 == said[judged]).mean() == pytest.approx(0.988, abs=5e-4)  # as the page says
    areas = json.loads(Path("runs/land-map.tif.areas.json").read_text())["classes"]
    for area in areas:  # the table of the page
        assert f"│ {area['name']:7} │ {area['pixels']:<6,} │ {area['hectares']:<8.2f} │" in page
    # Stubble is drawn on the other raster alone.
    assert set(np.unique(values[judged])) >= set(np.unique(said[judged]) - 1) == {0, 1, 3}


# -- what goes wrong --------------------------------------------------------------------------------------------------

Images = Callable[..., LabelledImages]


def masked(images: LabelledImages, mask: Callable[[int], np.ndarray] | None = None) -> LabelledImages:
    """The stripes as a segmentation: the left half of a picture is class 0, the right half its own class."""

    def halves(index: int) -> np.ndarray:
        out = np.zeros(images.shape[1:], np.int16)
        out[:, images.shape[2] // 2 :] = images.labels[index]
        return out

    return replace(
        images, task="segmentation", labels=np.zeros_like(images.labels), read_mask=mask or halves, ignore=255
    )


def refusal(model: DOFA, images: LabelledImages, **told: object) -> str:
    """The one line that a probe refuses images with."""
    with pytest.raises(DofaError) as error:
        probe(model, images, **({"stats": "dataset", "baselines": False, "folds": 3, "neighbours": 3} | told))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused_with_their_image(make_images: Images, label: int) -> None:
    images = make_images(per_class=2)
    labels = images.labels.copy()
    labels[4] = label
    with pytest.raises(DataError, match=f"^stripes: image 4 has label {label}; its 3 classes are 0 to 2"):
        replace(images, labels=labels)


def test_several_labels_are_one_column_a_class_of_0_and_1(make_images: Images) -> None:
    images = make_images(per_class=2)
    rows = np.eye(3, dtype=np.int64)[images.labels]
    assert len(replace(images, task="multilabel", labels=rows)) == 6
    with pytest.raises(DataError, match=r"labels of shape \(6, 2\)"):
        replace(images, task="multilabel", labels=rows[:, :2])
    with pytest.raises(DataError, match="image 0 has label 2; a class is there, 1, or not, 0"):
        replace(images, task="multilabel", labels=2 * rows)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_nan_pixels_are_refused_with_their_image(make_images: Images, encoder: DOFA, task: str) -> None:
    images = make_images(per_class=4)
    inner = images.read

    def read(index: int):
        raw = inner(index)[0].astype(np.float32)
        if index == 6:
            raw[1, 3, 4] = np.nan
        return raw, None

    broken = replace(images, read=read)
    scaled = broken.scaling.with_stats([120] * 3, [50] * 3, "corpus")
    broken = replace(broken, corpus_scaling=scaled)
    said = refusal(encoder, masked(broken) if task == "segmentation" else broken, stats=None)
    assert "image 6" in said


def test_nan_pixels_that_the_data_set_calls_invalid_are_filled(make_images: Images, encoder: DOFA) -> None:
    images = make_images(per_class=6)
    inner = images.read

    def read(index: int):
        raw, valid = inner(index)[0].astype(np.float32), np.ones((16, 16), bool)
        raw[:, 3, 4], valid[3, 4] = np.nan, False
        return raw, valid

    found = probe(encoder, replace(images, read=read), stats="dataset", folds=3, neighbours=3, baselines=False)
    assert np.isfinite(found.row("pooled").score.value)


def test_an_empty_part_of_a_split_is_named(make_images: Images, encoder: DOFA) -> None:
    images = make_images(per_class=4)
    for part in ("train", "test"):
        other = "test" if part == "train" else "train"
        told = replace(images, find_splits=lambda other=other: (other,) * 12)
        assert f"has no {part} images in its split" in refusal(encoder, told, by="split")


def test_a_class_that_the_training_lacks_is_told_beside_the_number(make_images: Images, encoder: DOFA) -> None:
    images = make_images(per_class=12)
    where = tuple(f"place {i % 4}" if label else "far away" for i, label in enumerate(images.labels))
    found = probe(
        encoder,
        replace(images, find_places=lambda: where),
        stats="dataset", folds=3, by="place", neighbours=3, baselines=False,
    )  # fmt: skip
    assert any("stripes 0 lies in too few places" in note for note in found.warnings)
