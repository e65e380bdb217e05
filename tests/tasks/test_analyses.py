"""Looks into models: kernels along the wavelength axis, maps of features, more bands and fewer."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dofa import sensors
from dofa.cli import main
from dofa.datasets.splits import share_out
from dofa.errors import ConfigError
from dofa.evaluation import analyse as analyses
from dofa.evaluation.analyse import analyse, short_names, tsne
from dofa.evaluation.backbones import open_backbone
from dofa.evaluation.frozen_features import encode
from dofa.evaluation.missing_bands import ZeroedBands, counts_missing, draw_sets, judge, order_bands
from dofa.evaluation.spectra import cosines, spectra
from dofa.model import checkpoint
from dofa.model.encoder import DOFA

from ..vit_files import write_vit

AXIS_FILES = {"wavelengths.csv", "kernels.csv", "wavelengths.png", "kernels.png"}
DATA_FILES = {
    "tsne.csv", "tsne.png", "bands_added.csv", "bands_added.png", "bands_missing.csv", "bands_missing.png",
    "analyses.json",
}  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- the wavelength axis ----------------------------------------------------------------------------------------------


def test_a_kernel_of_the_axis_is_what_an_image_of_that_one_band_meets(encoder: DOFA) -> None:
    found = spectra(encoder, [0.49, 1.61])
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        tokens, _ = encoder.patch_embed(image, encoder.encode_bands([1.61]))
        bias = encoder.patch_embed.kernel(encoder.encode_bands([1.61]))[1]
    by_hand = np.tensordot(image[0, 0].double().numpy(), found.kernel[1], 2) + bias.double().numpy()
    np.testing.assert_allclose(tokens[0, 0].numpy(), by_hand, atol=1e-5)
    np.testing.assert_allclose(found.norm[0], np.linalg.norm(found.kernel[0]))


def test_cosines_are_one_with_oneself_and_symmetric(encoder: DOFA) -> None:
    found = cosines(spectra(encoder).embedding)
    assert found.shape == (43, 43)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T)
    assert cosines(np.array([[1.0, 0], [0, 2], [-3, 0]])).tolist() == [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]


def test_without_data_only_the_axis_is_looked_at(encoder: DOFA, tmp_path: Path) -> None:
    checkpoint.save(encoder, tmp_path / "model")
    report = analyse([str(tmp_path / "model")], out=tmp_path / "out")
    assert {p.name for p in report.files} == AXIS_FILES == {p.name for p in (tmp_path / "out").iterdir()}
    table = rows(tmp_path / "out" / "wavelengths.csv")
    assert len(table) == 43 * 43
    same = [row for row in table if row["wavelength_um"] == row["other_um"]]
    assert {row["kernel"] for row in same} == {"1.00000"}


# -- bands ------------------------------------------------------------------------------------------------------------


def test_bands_are_spread_from_the_first_to_whichever_is_farthest_from_all_before_it() -> None:
    s2 = sensors.get("sentinel-2-l2a").select(["B02", "B03", "B08", "B11", "B12"])
    assert order_bands(s2, "given") == ("B02", "B03", "B08", "B11", "B12")
    # .49; then 2.20; then 1.61 (.59 from 2.20; .83 is .34 from .49); then .83; the rest.
    assert order_bands(s2, "spread") == ("B02", "B12", "B11", "B08", "B03")
    radar = sensors.get("sentinel-1-grd")
    assert order_bands(radar, "spread") == radar.band_names


@pytest.mark.parametrize(("bands", "missing"), [(2, [1]), (3, [1, 2]), (13, [1, 3, 6, 10, 12])])
def test_one_to_all_but_one_of_the_bands_go_missing(bands: int, missing: list[int]) -> None:
    assert counts_missing(bands) == missing


def test_sets_of_missing_bands_differ_and_are_no_more_than_there_are() -> None:
    found = draw_sets("abc", 1, 5, seed=0)
    assert sorted(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert draw_sets("abcdefgh", 4, 3, seed=1) == draw_sets("abcdefgh", 4, 3, seed=1)


def test_a_dropped_band_is_absent_and_a_zeroed_one_holds_its_mean(make_images, encoder: DOFA, monkeypatch) -> None:
    images, backbone = make_images(per_class=2), open_backbone(encoder)
    scaling = images.scaling.with_stats([120, 110, 100], [50, 40, 30], "user")
    fed = []
    monkeypatch.setattr(
        backbone, "vectors", lambda x, sensor, levels: fed.append((x, sensor)) or {"pooled": x.mean((2, 3))}
    )
    encode(ZeroedBands(backbone, [1]), images, scaling)
    encode(backbone, images.select_bands(["R", "B"]), scaling.select(["R", "B"]))
    (zeroed, all_bands), (dropped, two) = fed
    assert all_bands.band_names == ("R", "G", "B")
    assert two.band_names == ("R", "B")
    assert not zeroed[:, 1].any()
    assert torch.equal(zeroed[:, [0, 2]], dropped)


def test_zeroed_and_whole_images_never_share_a_cache_entry(make_images, encoder: DOFA, tmp_path: Path) -> None:
    images, backbone = make_images(per_class=2), open_backbone(encoder)
    scaling = images.scaling.with_stats([120, 110, 100], [50, 40, 30], "user")
    found = [
        encode(model, images, scaling, cache=tmp_path)["pooled"]
        for model in (backbone, ZeroedBands(backbone, [1]), ZeroedBands(backbone, [0, 1]), ZeroedBands(backbone, [1]))
    ]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[1], found[2])
    assert np.array_equal(found[1], found[3])
    assert len(list(tmp_path.iterdir())) == 3


def test_answers_are_judged_on_images_that_were_not_learned_from(make_images) -> None:
    images = make_images(per_class=20)
    shared = share_out(images, 4, "auto", 0)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 40)).astype(np.float32)  # separable, were it judged where it was learned
    assert judge(noise, [noise], images.labels, shared, 0).mean() < 0.6
    told = np.eye(3, dtype=np.float32)[images.labels]
    right = judge(told, [told, np.roll(told, 1, axis=1)], images.labels, shared, 0)
    assert np.array_equal(right, np.full(60, 0.5))  # one of two views is always right, the other never


# -- maps -------------------------------------------------------------------------------------------------------------


def test_t_sne_keeps_clusters_apart_and_is_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 20)
    features = (8 * np.eye(3)[label] @ rng.normal(size=(3, 30)) + rng.normal(size=(60, 30))).astype(np.float32)
    features[:, 4] = 7  # a constant feature is no reason to fail
    found = tsne(features, 0)
    assert np.array_equal(found, tsne(features, 0))
    distance = np.linalg.norm(found[:, None] - found[None], axis=2) + 1e9 * np.eye(60)
    assert (label[distance.argmin(1)] == label).all()


# -- the command ------------------------------------------------------------------------------------------------------


def test_several_models_are_looked_at_side_by_side(make_images, encoder: DOFA, tmp_path, monkeypatch) -> None:
    images = make_images(per_class=12)
    monkeypatch.setattr(analyses, "open_labelled", lambda spec: images)
    checkpoint.save(encoder, tmp_path / "mine" / "model")
    folder = str(tmp_path / "mine" / "model")
    out = tmp_path / "out"
    words = ["analyse", "--weights", folder, f"random:{folder}#1", "--data", "stripes", "--out", str(out)]
    assert main([*words, "--stats", "dataset", "--folds", "3", "--draws", "2", "--points", "30"]) == 0
    assert {p.name for p in out.iterdir()} == AXIS_FILES | DATA_FILES | {"cache"}
    for path in out.glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG"
    names = ["mine", "random:mine#1"]
    assert [row["model"] for row in rows(out / "tsne.csv")] == [n for n in names for _ in range(30)]
    added = rows(out / "bands_added.csv")
    assert [(row["model"], row["bands"]) for row in added] == [
        (n, k) for n in (*names, "band statistics") for k in "123"
    ]
    missing = rows(out / "bands_missing.csv")
    assert [(r["model"], r["way"], r["bands_left"]) for r in missing] == [
        (n, way, k) for n in names for way in ("dropped", "zeroed") for k in "321"
    ]
    whole = {row["model"]: row["accuracy"] for row in added if row["bands"] == "3"}
    assert all(r["accuracy"] == whole[r["model"]] for r in missing if r["bands_left"] == "3")
    assert all(float(r["low"]) <= float(r["accuracy"]) <= float(r["high"]) for r in added + missing)


def test_models_without_generated_kernels_have_nothing_to_show_without_data(
    encoder: DOFA, tmp_path: Path, capsys
) -> None:
    (tmp_path / "file").write_text("")
    checkpoint.save(encoder, tmp_path / "model")
    teacher = write_vit(tmp_path / "vit", 48, 3, 3, 8, 16)
    assert main(["analyse", "--weights", f"teacher:{teacher}", "--out", str(tmp_path / "out")]) == 2
    assert "none of the models generates kernels" in capsys.readouterr().err
    assert main(["analyse", "--weights", str(tmp_path / "model"), "--out", str(tmp_path / "file")]) == 2
    assert "name another place" in capsys.readouterr().err


def test_short_names_are_the_last_parts_that_differ() -> None:
    assert short_names(["runs/a/model", "runs/b/model/"]) == ["a", "b"]
    assert short_names(["x/a/model", "y/a/model"]) == ["x/a", "y/a"]
    assert short_names(["a/model", "random:a/model#0", "teacher:t.safetensors"]) == [
        "a", "random:a#0", "teacher:t.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": []}, "names no model"),
        ({"weights": ["twice", "twice"]}, "names a model twice"),
        ({"points": 3}, "points is 3"),
        ({"draws": 0}, "draws is 0"),
        ({"bands": ["NIR"]}, "NIR"),
        ({"block": 7}, "block 7: pooled, or a number from 0 to 2"),
        ({"stats": "nobody"}, "no such statistics"),
    ],
)
def test_bad_settings_are_one_line(make_images, encoder, tmp_path, monkeypatch, changed, said) -> None:
    monkeypatch.setattr(analyses, "open_labelled", lambda spec: make_images())
    checkpoint.save(encoder, tmp_path / "model")
    told = {"weights": [str(tmp_path / "model")], "data": "stripes", "out": tmp_path / "out", "stats": "dataset"}
    with pytest.raises(ConfigError, match=said) as error:
        analyse(**(told | changed))
    assert "\n" not in str(error.value)


def test_images_without_one_class_each_are_refused_before_any_work(make_images, encoder, tmp_path, monkeypatch) -> None:
    images = replace(make_images(), task="multilabel", labels=np.eye(3, dtype=np.int64)[make_images().labels])
    monkeypatch.setattr(analyses, "open_labelled", lambda spec: images)
    checkpoint.save(encoder, tmp_path / "model")
    with pytest.raises(ConfigError, match=r"is a multilabel: .* one class an image"):
        analyse([str(tmp_path / "model")], data="stripes", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
