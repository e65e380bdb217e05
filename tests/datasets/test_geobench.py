"""The reader of GEO-Bench v1 on full-layout fixtures of all twelve sets and on the real sample of m-eurosat."""

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.datasets.fixtures_geobench import LAYOUTS, SEGMENTED, mask_values, plane_value, sample_label, write_geobench

from dofa.datasets.opening import open_labelled
from dofa.errors import ConfigError, DataError, DofaError

# What the reader has to make of each set, written from the tables of docs/datasets.md and not from its code:
# wavelength in micrometres of each band it yields, the key it comes from, and the factor to the physical value.
S2 = {
    "01": 0.4427, "02": 0.4924, "03": 0.5598, "04": 0.6646, "05": 0.7041, "06": 0.7405, "07": 0.7828, "08": 0.8328,
    "8A": 0.8647, "09": 0.9451, "10": 1.3735, "11": 1.6137, "12": 2.2024,
}  # fmt: skip
TWELVE = [(number, number.replace("8A", "08A")) for number in S2 if number != "10"]
WANTED: dict[str, tuple[list[tuple[float, str]], float]] = {
    "m-bigearthnet": ([(S2[b], key) for b, key in TWELVE], 1e-4),
    "m-forestnet": (
        [(0.655, "04"), (0.561, "03"), (0.482, "02"), (0.865, "05"), (1.609, "06"), (2.201, "07")], 1.0),
    "m-brick-kiln": ([*((S2[b], b) for b in list(S2)[:8]), (S2["11"], "08A"), (S2["12"], "09")], 1e-4),
    "m-pv4ger": ([(0.66, "Red"), (0.56, "Green"), (0.48, "Blue")], 1.0),
    "m-so2sat": ([(S2[b], key) for b, key in TWELVE if b not in ("01", "09")], 1.0),
    "m-eurosat": (
        [*((S2[b], b) for b in list(S2)[:8]), (S2["09"], "08A"), (S2["10"], "09"), (S2["11"], "10"), (S2["12"], "11"),
         (S2["8A"], "12")], 1e-4),
    "m-pv4ger-seg": ([(0.66, "Red"), (0.56, "Green"), (0.48, "Blue")], 1.0),
    "m-nz-cattle": ([(0.66, "Red"), (0.56, "Green"), (0.48, "Blue")], 1.0),
    "m-NeonTree": ([(0.66, "Red"), (0.56, "Green"), (0.48, "Blue")], 1.0),
    "m-cashew-plant": ([(S2[b], key) for b, key in TWELVE], 1e-4),
    "m-SA-crop-type": ([(S2[b], key) for b, key in TWELVE], 1 / 255),
    "m-chesapeake": ([(0.634, "Red"), (0.56, "Green"), (0.456, "Blue"), (0.8765, "Near")], 255.0),
}  # fmt: skip
PUBLISHED = {
    "m-bigearthnet": 12, "m-forestnet": 9, "m-brick-kiln": 13, "m-pv4ger": 3, "m-so2sat": 10, "m-eurosat": 13,
    "m-pv4ger-seg": 3, "m-nz-cattle": 3, "m-NeonTree": 3, "m-cashew-plant": 9, "m-SA-crop-type": 13, "m-chesapeake": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("geobench")
    return {name: write_geobench(root, name) for name in LAYOUTS}


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    return write_geobench(tmp_path, "m-eurosat", samples=8)


def key_of(name: str, start: str) -> str:
    """The band of the fixture that begins so, among Sentinel-2's where m-so2sat has two."""
    found = [b for b in LAYOUTS[name].bands if b.startswith(start) and ("VV" not in b and "VH" not in b)]
    return next((b for b in found if b.split()[0] == start), found[0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_band_is_what_its_wavelength_says_and_in_physical_units(name: str, made: dict[str, Path]) -> None:
    data = open_labelled(f"geobench:{made[name]}")
    layout, (bands, factor) = LAYOUTS[name], WANTED[name]
    order = sorted(range(len(data)), key=lambda i: data.sources[i])
    assert len(data) == 4
    assert data.shape == (len(bands), layout.size, layout.size)
    found = [band.wavelength_um or 0 for band in data.sensor.bands]
    np.testing.assert_allclose(found, [wavelength for wavelength, _ in bands], atol=0.008)
    for index in order:
        raw, valid = data.read(index)
        physical = data.scaling.physical(raw)
        wanted = [plane_value(layout, key_of(name, key), index) * factor for _, key in bands]
        np.testing.assert_allclose(physical[:, 5, 7], wanted, rtol=1e-5)
        assert valid is None


@pytest.mark.parametrize("name", LAYOUTS)
def test_labels_masks_and_splits_are_those_written(name: str, made: dict[str, Path]) -> None:
    data = open_labelled(f"geobench:{made[name]}")
    layout = LAYOUTS[name]
    assert data.splits == ("train", "train", "val", "test")
    assert (name in SEGMENTED) == (data.task == "segmentation")
    if data.task != "segmentation":
        np.testing.assert_array_equal(data.labels, [sample_label(layout, i) for i in range(4)])
        assert len(data.class_names) == layout.count
        return
    assert data.read_mask is not None
    ignored = name in ("m-cashew-plant", "m-SA-crop-type")
    assert data.ignore == (255 if ignored else None)
    assert len(data.class_names) == layout.count - ignored
    for i in range(4):
        raw = mask_values(layout, i).astype(int)
        np.testing.assert_array_equal(data.read_mask(i), np.where(raw == 0, 255, raw - 1) if ignored else raw)
    published = open_labelled(f"geobench:{made[name]}#published")
    assert published.read_mask is not None
    np.testing.assert_array_equal(published.read_mask(1), mask_values(layout, 1))
    assert len(published.class_names) == layout.count


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_bands_are_told_apart_from_corrected_ones(name: str, made: dict[str, Path]) -> None:
    published, corrected = (open_labelled(f"geobench:{made[name]}{word}") for word in ("#published", ""))
    assert published.shape[0] == PUBLISHED[name]
    assert published.fingerprint != corrected.fingerprint
    assert published.sensor.name == f"{name}-published"
    assert any("as published" in note for note in published.notes)


def test_shifted_bands_of_m_eurosat_are_corrected_and_published_ones_are_not(made: dict[str, Path]) -> None:
    layout = LAYOUTS["m-eurosat"]
    corrected = open_labelled(f"geobench:{made['m-eurosat']}")
    published = open_labelled(f"geobench:{made['m-eurosat']}#published")
    at = corrected.sensor.band_names.index("B8A")
    assert corrected.read(0)[0][at, 1, 1] == plane_value(layout, "12 - SWIR", 0)
    at = [band.wavelength_um for band in published.sensor.bands].index(0.865)
    assert published.read(0)[0][at, 1, 1] == plane_value(layout, "08A - Vegetation Red Edge", 0)
    assert any("shifted" in note for note in corrected.notes)


def test_statistics_of_the_set_follow_the_bands(made: dict[str, Path]) -> None:
    data = open_labelled(f"geobench:{made['m-eurosat']}")
    assert data.corpus_scaling is not None
    assert data.corpus_scaling.mean is not None
    at = data.sensor.band_names.index("B8A")
    assert data.corpus_scaling.mean[at] == pytest.approx(plane_value(LAYOUTS["m-eurosat"], "12 - SWIR", 0) * 1e-4)


def test_radar_of_m_so2sat_is_the_two_intensities(made: dict[str, Path]) -> None:
    data = open_labelled(f"geobench:{made['m-so2sat']}#s1")
    assert [band.polarisation for band in data.sensor.bands] == ["VV", "VH"]
    wanted = [plane_value(LAYOUTS["m-so2sat"], key, 2) for key in ("06 - VV.LEE Filtered", "05 - VH.LEE Filtered")]
    np.testing.assert_allclose(data.read(2)[0][:, 3, 3], wanted)
    assert data.scaling.unit == "linear_power"


def test_share_keeps_its_training_samples_and_the_whole_rest(eurosat: Path) -> None:
    data = open_labelled(f"geobench:{eurosat}#0.50x")
    assert sorted(data.splits or ()) == ["test", "test", "train", "train", "val", "val"]


def test_real_sample_of_m_eurosat_reads_as_forest_green(real_data: Path) -> None:
    folder = real_data / "true_formats" / "geobench1" / "classification_v1.0" / "m-eurosat"
    data = open_labelled(f"geobench:{folder}")
    assert (len(data), data.shape, data.class_names[data.labels[0]]) == (1, (13, 64, 64), "Forest")
    raw, _ = data.read(0)
    assert raw.dtype == np.int16
    physical = data.scaling.physical(raw).mean((1, 2))
    band = dict(zip(data.sensor.band_names, physical, strict=True))
    assert (band["B08"] - band["B04"]) / (band["B08"] + band["B04"]) == pytest.approx(0.70, abs=0.02)
    # Corrected names: the cirrus band is nearly dark, and B8A lies beside B08.
    assert band["B10"] < 0.01
    assert band["B8A"] == pytest.approx(band["B08"], rel=0.25)


def damage(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 3])


def test_damaged_sample_stops_the_reading_and_is_skipped_only_when_asked(eurosat: Path) -> None:
    damage(eurosat / "id_3.hdf5")
    (eurosat / "id_5.hdf5").write_bytes(b"")
    with pytest.raises(DataError, match=r"id_3\.hdf5 is damaged .*#skip-bad"):
        open_labelled(f"geobench:{eurosat}")
    data = open_labelled(f"geobench:{eurosat}#skip-bad")
    assert len(data) == 6
    (note,) = [note for note in data.notes if "cannot be read" in note]
    assert note.startswith("2 of 8 samples cannot be read and are left out: id_3.hdf5, id_5.hdf5")
    assert len(data.splits or ()) == 6


def test_all_samples_damaged_is_no_set(eurosat: Path) -> None:
    for file in eurosat.glob("*.hdf5"):
        damage(file)
    with pytest.raises(DataError, match="none of its 8 samples can be read"):
        open_labelled(f"geobench:{eurosat}#skip-bad")


class Foreign:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize("where", ["sample", "task_specs"])
def test_pickle_that_names_a_foreign_class_is_refused_and_never_skipped(
    where: str, eurosat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = pickle.dumps({"label": Foreign()}, protocol=4)
    if where == "task_specs":
        (eurosat / "task_specs.pkl").write_bytes(evil)
    else:
        with h5py.File(eurosat / "id_3.hdf5", "r+") as file:
            file.attrs["pickle"] = str(evil)
    with pytest.raises(DataError, match=r"names builtins\.print, .* refused"):
        open_labelled(f"geobench:{eurosat}#skip-bad")
    assert capsys.readouterr().out == ""


def test_label_outside_the_classes_is_refused_with_the_sample_s_name(eurosat: Path) -> None:
    with h5py.File(eurosat / "id_2.hdf5", "r+") as file:
        file.attrs["pickle"] = str(pickle.dumps({"label": 10}, protocol=4))
    with pytest.raises(DataError, match=r"id_2\.hdf5: its label is 10; m-eurosat has the labels 0 to 9"):
        open_labelled(f"geobench:{eurosat}")


def test_mask_with_a_foreign_label_is_refused(tmp_path: Path) -> None:
    folder = write_geobench(tmp_path, "m-cashew-plant")
    with h5py.File(folder / "sample_1.hdf5", "r+") as file:
        file["label"][4, 4] = 9
    data = open_labelled(f"geobench:{folder}")
    assert data.read_mask is not None
    with pytest.raises(DataError, match=r"sample_1\.hdf5: its mask holds 9"):
        data.read_mask(1)


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_geobench(tmp_path, "m-pv4ger-seg")
    with h5py.File(folder / "49.12,8.4.hdf5", "r+") as file:
        del file["label"]
        file["label"] = np.zeros((100, 320), np.uint8)
    with pytest.raises(DataError, match=r"49\.12,8\.4\.hdf5: 'label' has shape \(100, 320\)"):
        open_labelled(f"geobench:{folder}")


def test_link_to_another_file_is_not_followed(eurosat: Path) -> None:
    with h5py.File(eurosat / "id_1.hdf5", "r+") as file:
        del file["04 - Red"]
        file["04 - Red"] = h5py.ExternalLink(str(eurosat / "id_2.hdf5"), "/04 - Red")
    with pytest.raises(DataError, match="is a link to elsewhere"):
        open_labelled(f"geobench:{eurosat}")


def test_nan_pixels_are_not_valid(tmp_path: Path) -> None:
    folder = write_geobench(tmp_path, "m-so2sat")
    with h5py.File(folder / "sample_0.hdf5", "r+") as file:
        file["04 - Red"][3, 4] = np.nan
    _, valid = open_labelled(f"geobench:{folder}").read(0)
    assert valid is not None
    assert np.argwhere(~valid).tolist() == [[3, 4]]


def test_missing_set_says_where_to_get_it_and_what_it_looks_like(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"does not exist: get segmentation_v1\.0/m-nz-cattle\.zip from https://.*task_specs"
    ):
        open_labelled(f"geobench:{tmp_path / 'm-nz-cattle'}")
    with pytest.raises(DataError, match=r"is no set of GEO-Bench v1.*m-cashew-plant"):
        open_labelled(f"geobench:{tmp_path / 'm-cashew'}")


def test_partition_that_lists_absent_samples_needs_the_whole_set(eurosat: Path) -> None:
    (eurosat / "id_7.hdf5").unlink()
    data = open_labelled(f"geobench:{eurosat}")
    with pytest.raises(DataError, match=r"1 samples are listed but absent .*id_7"):
        data.splits  # noqa: B018


def test_sample_in_two_splits_is_refused(eurosat: Path) -> None:
    file = eurosat / "default_partition.json"
    said = json.loads(file.read_text())
    said["test"].append(said["train"][0])
    file.write_text(json.dumps(said))
    with pytest.raises(DataError, match=r"lists id_0 as train and as test"):
        open_labelled(f"geobench:{eurosat}")


@pytest.mark.parametrize(("words", "says"), [("pblished", "published"), ("s1", "m-so2sat"), ("0.10x,0.20x", "choose")])
def test_words_that_do_not_fit_are_refused(words: str, says: str, eurosat: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        open_labelled(f"geobench:{eurosat}#{words}")


def test_set_with_another_number_of_classes_is_another_set(eurosat: Path, made: dict[str, Path]) -> None:
    shutil.copy(made["m-forestnet"] / "task_specs.pkl", eurosat / "task_specs.pkl")
    with pytest.raises(DofaError, match="says 12 classes; the published m-eurosat has 10"):
        open_labelled(f"geobench:{eurosat}")
