"""RESISC45, SegMunich, OMBRIA and Sen1Floods11: their readers on full-layout fixtures and on what is real."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.datasets.fixtures_published import (
    RESISC45,
    SEGMUNICH_RAW,
    write_ombria,
    write_resisc45,
    write_segmunich,
    write_sen1floods11,
    write_tif,
)

from dofa.datasets.opening import open_labelled
from dofa.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # the writers' own chips


def test_resisc45_labels_are_alphabetical_and_pictures_are_theirs(tmp_path: Path) -> None:
    data = open_labelled(f"resisc45:{write_resisc45(tmp_path)}")
    assert len(data) == 135
    np.testing.assert_array_equal(data.labels, np.repeat(np.arange(45), 3))
    assert data.class_names[41] == RESISC45[41].replace("_", " ") == "tennis court"
    raw, valid = data.read(3 * 41)
    assert raw.shape == data.shape == (3, 256, 256)
    np.testing.assert_allclose(raw.mean((1, 2)), (205, 100, 45), atol=2)
    assert valid is None
    assert data.splits is None


@pytest.mark.parametrize(
    ("lists", "splits"), [("resisc45", ("train", "val", "test")), ("train-val", ("train", "train", "test"))]
)
def test_both_layouts_of_resisc45_s_lists_are_read(lists: str, splits: tuple[str, ...], tmp_path: Path) -> None:
    write_resisc45(tmp_path, lists)
    data = open_labelled(f"resisc45:{tmp_path}")
    assert data.splits == splits * 45
    assert any("must not choose" in note for note in data.notes) == (lists == "train-val")


def test_lists_of_resisc45_need_the_whole_set(tmp_path: Path) -> None:
    folder = write_resisc45(tmp_path, "resisc45")
    (folder / "wetland" / "wetland_002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 pictures are listed but absent .* wetland_002"):
        open_labelled(f"resisc45:{folder}").splits  # noqa: B018
    (tmp_path / "resisc45-val.txt").unlink()
    with pytest.raises(DataError, match="not all of resisc45-train, -val and -test"):
        open_labelled(f"resisc45:{folder}")


def test_published_wavelengths_of_resisc45_stand_behind_a_word(tmp_path: Path) -> None:
    data = open_labelled(f"resisc45:{write_resisc45(tmp_path)}#published")
    assert [band.wavelength_um for band in data.sensor.bands] == [0.665, 0.56, 0.49]
    assert data.sensor.name == "resisc45-published"


def test_cut_off_picture_is_named(tmp_path: Path) -> None:
    folder = write_resisc45(tmp_path)
    file = folder / "airport" / "airport_002.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"airport_002\.jpg is no whole JPEG"):
        open_labelled(f"resisc45:{folder}").read(4)


@pytest.mark.parametrize("second", ["val", "test"])
def test_segmunich_reads_with_either_second_split(second: str, tmp_path: Path) -> None:
    data = open_labelled(f"segmunich:{write_segmunich(tmp_path, second)}")
    assert data.splits == ("train", "train", "test")
    assert (data.shape, data.task, data.ignore, len(data.colours or ())) == ((10, 128, 128), "segmentation", 255, 13)
    raw, _ = data.read(2)
    np.testing.assert_array_equal(raw[:, 9, 9], 100 * np.arange(1, 11))
    np.testing.assert_allclose(data.scaling.physical(raw)[3, 0, 0], 0.04)
    assert data.read_mask is not None
    row = data.read_mask(0)[50]
    raw_row = np.array([*SEGMUNICH_RAW, 255])[np.arange(128) % 14]
    assert {int(r): int(c) for r, c in zip(raw_row, row, strict=True)} == {
        0: 0, 21: 1, 22: 2, 23: 3, 31: 4, 5: 5, 32: 6, 33: 7, 41: 8, 13: 9, 14: 10, 11: 11, 12: 12, 255: 255,
    }  # fmt: skip


def test_bands_of_segmunich_can_be_said(tmp_path: Path) -> None:
    folder = write_segmunich(tmp_path)
    assert any("doubtful: bands" in note for note in open_labelled(f"segmunich:{folder}").notes)
    said = open_labelled(f"segmunich:{folder}#bands=B02+B03+B04+B05+B06+B07+B08+B8A+B11+B12")
    assert said.sensor.band_names[6] == "B08"
    assert not any("doubtful: bands" in note for note in said.notes)
    with pytest.raises(ConfigError, match="no band 'B13'"):
        open_labelled(f"segmunich:{folder}#bands=B13")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_foreign_label_and_foreign_shape_of_segmunich_are_named(tmp_path: Path) -> None:
    folder = write_segmunich(tmp_path)
    write_tif(folder / "train" / "label" / "10_2.tif", np.full((1, 128, 128), 7, np.uint8))
    write_tif(folder / "train" / "img" / "10_2.tif", np.zeros((3, 128, 128), np.uint16))
    data = open_labelled(f"segmunich:{folder}")
    assert data.read_mask is not None
    with pytest.raises(DataError, match=r"10_2\.tif holds the label 7"):
        data.read_mask(1)
    with pytest.raises(DataError, match=r"10_2\.tif has 3 bands of 128 × 128 pixels; SegMunich has 10"):
        data.read(1)


def test_list_of_segmunich_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = write_segmunich(tmp_path)
    (folder / "train.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match="is no name of a chip"):
        open_labelled(f"segmunich:{folder}")


def test_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write_segmunich(tmp_path)
    (folder / "train.txt").write_bytes(b"10_1\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"train\.txt is no text of names"):
        open_labelled(f"segmunich:{folder}")


@pytest.mark.parametrize("packed", [False, True])
def test_ombria_reads_from_a_folder_and_a_zip(packed: bool, tmp_path: Path) -> None:
    path = write_ombria(tmp_path / "OMBRIA")
    if packed:
        with zipfile.ZipFile(tmp_path / "ombria.zip", "w") as archive:
            for file in sorted(path.rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path))
        path = tmp_path / "ombria.zip"
    radar, optical = open_labelled(f"ombria:{path}#s1"), open_labelled(f"ombria:{path}#s2")
    assert radar.splits == optical.splits == ("train", "train", "test")
    assert [int(radar.read(i)[0][0, 0, 0]) for i in range(3)] == [81, 82, 83]
    assert optical.read(2)[0][:, 0, 0].tolist() == [83, 84, 85]
    assert radar.read_mask is not None
    assert radar.read_mask(1)[7, [0, 127, 128, 255]].tolist() == [0, 0, 1, 1]


def test_before_and_after_of_ombria_stand_as_bands_of_one_image(tmp_path: Path) -> None:
    data = open_labelled(f"ombria:{write_ombria(tmp_path)}#s2,before")
    assert data.sensor.band_names == ("B11-before", "B08-before", "B04-before", "B11-after", "B08-after", "B04-after")
    assert data.read(0)[0][:, 3, 3].tolist() == [41, 42, 43, 81, 82, 83]
    assert data.sensor.name == "ombria-s2-change"


def test_ombria_without_its_image_before_says_which_file_is_absent(tmp_path: Path) -> None:
    path = write_ombria(tmp_path)
    (path / "OmbriaS1" / "test" / "BEFORE" / "S1_before_0003.png").unlink()
    assert len(open_labelled(f"ombria:{path}#s1")) == 3
    with pytest.raises(DataError, match=r"lacks OmbriaS1/test/BEFORE/S1_before_0003\.png"):
        open_labelled(f"ombria:{path}#s1,before")


def test_masks_of_real_ombria_are_those_of_the_radar_for_both_sensors(real_data: Path) -> None:
    path = real_data / "ombria_flood" / "OMBRIA_110.zip"
    radar, optical = open_labelled(f"ombria:{path}#s1"), open_labelled(f"ombria:{path}#s2")
    assert len(radar) == len(optical) == 110
    assert radar.read_mask is not None
    assert optical.read_mask is not None
    with zipfile.ZipFile(path) as archive:
        for i in range(0, 110, 11):
            name = radar.sources[i].split("!")[1].replace("AFTER", "MASK").replace("after", "mask")
            with Image.open(archive.open(name)) as picture:
                np.testing.assert_array_equal(radar.read_mask(i), np.asarray(picture) // 255)
            np.testing.assert_array_equal(radar.read_mask(i), optical.read_mask(i))
    assert any("110 masks" in note for note in optical.notes)


def test_official_lists_of_sen1floods11_choose_the_chips(tmp_path: Path) -> None:
    base = write_sen1floods11(tmp_path)
    data = open_labelled(f"sen1floods11:{base}#s1")
    assert dict(zip(data.places or (), data.splits or (), strict=True)) == {
        "Ghana": "train", "India": "val", "USA": "test"}  # fmt: skip
    kept = open_labelled(f"sen1floods11:{base}#s1,bolivia")
    assert dict(zip(kept.places or (), kept.splits or (), strict=True)) == {
        "Bolivia": "test", "Ghana": "train", "India": "val"}  # fmt: skip


def test_chips_of_sen1floods11_keep_their_units_gaps_and_unlabelled_pixels(tmp_path: Path) -> None:
    base = write_sen1floods11(tmp_path, lists=False)
    radar, optical = (open_labelled(f"sen1floods11:{base}#{word}") for word in ("s1", "s2"))
    assert radar.splits is None
    assert len(radar) == 5
    raw, valid = radar.read(0)
    assert (radar.scaling.unit, radar.sensor.band_names) == ("db", ("VV", "VH"))
    np.testing.assert_allclose(radar.scaling.physical(raw)[:, 1, 1], [-8, -15])
    assert valid is not None
    assert np.argwhere(~valid).tolist() == [[0, 0]]
    raw, valid = optical.read(0)
    assert optical.sensor.band_names[8:] == ("B8A", "B09", "B10", "B11", "B12")
    np.testing.assert_allclose(optical.scaling.physical(raw)[[0, 8], 1, 1], [0.01, 0.0108], rtol=1e-5)
    assert valid is not None
    assert np.argwhere(~valid).tolist() == [[0, 0]]
    assert radar.read_mask is not None
    assert radar.read_mask(0)[4, :4].tolist() == [255, 0, 1, 255]


def test_lists_of_sen1floods11_need_the_whole_set_and_masks_must_be_there(tmp_path: Path) -> None:
    base = write_sen1floods11(tmp_path)
    hand = base / "data" / "flood_events" / "HandLabeled"
    (hand / "S1Hand" / "USA_3_S1Hand.tif").unlink()
    with pytest.raises(DataError, match=r"1 chips listed .* USA_3"):
        open_labelled(f"sen1floods11:{base}#s1").splits  # noqa: B018
    (hand / "LabelHand" / "India_2_LabelHand.tif").unlink()
    with pytest.raises(DataError, match=r"lacks 1 masks, India_2_LabelHand\.tif"):
        open_labelled(f"sen1floods11:{base}#s1")


def test_real_sen1floods11_chips_are_six_places_of_radar_and_one_of_optical(real_data: Path) -> None:
    path = real_data / "sen1floods11"
    radar, optical = (open_labelled(f"sen1floods11:{path}#{word}") for word in ("s1", "s2"))
    assert radar.places == ("India", "Mekong", "Nigeria", "Pakistan", "Spain", "USA")
    assert optical.places == ("Spain",)
    raw, valid = radar.read(2)
    assert valid is not None
    assert 0 < (~valid).sum() < 1000
    assert -30 < radar.scaling.physical(raw)[0][valid].mean() < 0
    assert radar.read_mask is not None
    assert set(np.unique(radar.read_mask(2)).tolist()) <= {0, 1, 255}


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("resisc45", "", "get NWPU-RESISC45 from https://.*airplane/airplane_001.jpg"),
        ("segmunich", "", "get SegMunich from https://.*train/img/<id>.tif"),
        ("ombria", "#s1", "get the set from https://.*OmbriaS1 and OmbriaS2"),
        ("sen1floods11", "#s2", "get Sen1Floods11 from https://.*S2Hand/<Region>_<id>_S2Hand.tif"),
        ("hyperspectral", "", "Indian Pines .* is at https://"),
    ],
)  # fmt: skip
def test_missing_set_says_where_to_get_it_and_what_it_looks_like(
    kind: str, words: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says) as raised:
        open_labelled(f"{kind}:{tmp_path / 'nothing'}{words}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["ombria", "sen1floods11"])
@pytest.mark.parametrize("words", ["", "#s1,s2"])
def test_two_sensors_are_never_chosen_between_by_default(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one sensor"):
        open_labelled(f"{kind}:{tmp_path}{words}")
