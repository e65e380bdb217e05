"""Hyperspectral scenes: the two real ones, and .npz and .mat files in the forms people hand round."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from dofa import sensors
from dofa.datasets.opening import open_labelled
from dofa.errors import ConfigError, DataError

CUBE = (np.arange(6 * 8 * 200).reshape(6, 8, 200) % 7000).astype(np.uint16)
TRUTH = (np.arange(48).reshape(6, 8) % 17).astype(np.uint8)


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_real_indian_pines_has_its_16_classes_and_10249_pixels(real_data: Path) -> None:
    data = open_labelled(f"hyperspectral:{real_data / 'indian_pines' / 'indian_pines_corrected.npz'}")
    assert (len(data), data.shape, data.task, data.ignore) == (1, (200, 145, 145), "segmentation", 255)
    assert data.sensor.name == "aviris-indian-pines"
    assert data.read_mask is not None
    mask = data.read_mask(0)
    counts = np.bincount(mask[mask < 255])
    # Published sizes of alfalfa, corn no till … stone steel towers.
    assert counts.tolist() == [46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93]
    assert counts.sum() == 10249
    assert data.class_names[13] == "woods"
    raw, valid = data.read(0)
    # Woods are greener than red and far brighter in the near infrared: the bands stand in order of wavelength.
    spectrum = dict(zip(data.sensor.band_names, raw[:, mask == 13].mean(1), strict=True))
    assert spectrum["B050"] > 1.5 * spectrum["B028"]
    assert valid is None


def test_real_enmap_scene_is_known_by_its_wavelengths(real_data: Path) -> None:
    path = real_data / "enmap_potsdam" / "west_96x64.npz"
    data = open_labelled(f"hyperspectral:{path}")
    assert (data.sensor.name, data.shape) == ("enmap", (218, 96, 64))
    assert data.class_names == ("roof", "pavement", "low vegetation", "tree", "soil")
    assert any(note.startswith("6 bands hold no data") for note in data.notes)
    assert any("no pixel of water" in note for note in data.notes)
    raw, valid = data.read(0)
    assert valid is None
    assert raw.min() > -32768
    with np.load(path) as opened:
        at = data.sensor.band_names.index("B140")
        np.testing.assert_array_equal(raw[at], opened["x"][139])
        assert data.sensor.bands[at].wavelength_um == pytest.approx(opened["wavelength_nm"][139] / 1000)
        assert data.read_mask is not None
        np.testing.assert_array_equal(data.read_mask(0) == 3, opened["y"] == 4)


def test_a_sensor_picks_its_bands_out_of_the_file_by_wavelength(real_data: Path) -> None:
    path = real_data / "enmap_potsdam" / "west_96x64.npz"
    data = open_labelled(f"hyperspectral:{path}#sensor=enmap-202")
    assert data.shape == (202, 96, 64)
    with np.load(path) as opened:
        for at in (0, 100, 201):
            number = int(data.sensor.bands[at].name[1:]) - 1
            np.testing.assert_array_equal(data.read(0)[0][at], opened["x"][number])
    with pytest.raises(ConfigError, match=r"has no band at 0\.4000?2? µm, which is B001"):
        open_labelled(f"hyperspectral:{path}#sensor=aviris-indian-pines")


@pytest.mark.parametrize("first", [True, False])
def test_bands_may_stand_first_or_last(first: bool, tmp_path: Path) -> None:
    cube = CUBE.transpose(2, 0, 1) if first else CUBE
    data = open_labelled(f"hyperspectral:{write_npz(tmp_path / 'indian_pines.npz', x=cube, y=TRUTH)}")
    np.testing.assert_array_equal(data.read(0)[0], CUBE.transpose(2, 0, 1))


@pytest.mark.parametrize("generation", [5, 7.3])
def test_matlab_files_of_both_generations_read_the_same(generation: float, tmp_path: Path) -> None:
    files = {"Indian_pines_corrected.mat": ("indian_pines_corrected", CUBE), "Indian_pines_gt.mat": ("gt", TRUTH)}
    for name, (key, array) in files.items():
        if generation == 5:
            scipy.io.savemat(tmp_path / name, {key: array.astype(np.float64) if key == "gt" else array})
            continue
        with h5py.File(tmp_path / name, "w", userblock_size=512) as opened:
            opened[key] = array.T  # MATLAB writes the last axis first
        with (tmp_path / name).open("r+b") as head:
            head.write(b"MATLAB 7.3 MAT-file".ljust(128))
    data = open_labelled(f"hyperspectral:{tmp_path / 'Indian_pines_corrected.mat'}")
    np.testing.assert_array_equal(data.read(0)[0], CUBE.transpose(2, 0, 1))
    assert data.read_mask is not None
    np.testing.assert_array_equal(data.read_mask(0), np.where(TRUTH == 0, 255, TRUTH.astype(int) - 1))
    assert data.class_names[1] == "corn, no till"


def test_labels_of_another_file_and_a_sensor_of_one_s_own(tmp_path: Path) -> None:
    sensor = tmp_path / "mine.yaml"
    sensor.write_text(
        "name: mine\ngsd_m: 2\nbands:\n" + "".join(f"  - {{name: B{i}, wavelength_um: 0.{40 + i}}}\n" for i in range(5))
    )
    cube = np.arange(240, dtype=np.float32).reshape(6, 8, 5)
    cube[2, 3, 1] = np.nan
    path = write_npz(tmp_path / "flight.npz", a=cube)
    labels = write_npz(tmp_path / "drawn.npz", b=np.tile([0, 3, 5, 5], (6, 2)).astype(np.int32))
    data = open_labelled(f"hyperspectral:{path}#gt={labels},sensor={sensor}")
    assert data.sensor.name == "mine"
    assert data.class_names == ("class 3", "class 5")
    _, valid = data.read(0)
    assert valid is not None
    assert np.argwhere(~valid).tolist() == [[2, 3]]
    assert data.read_mask is not None
    assert data.read_mask(0)[0, :4].tolist() == [255, 0, 1, 1]


def test_wavelengths_of_no_catalogued_sensor_make_a_sensor(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "pavia.npz", x=np.ones((6, 8, 4), np.uint16), y=TRUTH,
                     wavelength_nm=np.array([430.0, 500, 650, 850]))  # fmt: skip
    data = open_labelled(f"hyperspectral:{path}")
    assert [band.wavelength_um for band in data.sensor.bands] == pytest.approx([0.43, 0.5, 0.65, 0.85])
    assert data.sensor.name == "pavia"
    assert data.scaling.unit == "dn"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": CUBE[..., :9], "y": TRUTH}, "nobody says which 9 bands"),
        ({"x": CUBE, "y": TRUTH, "z": CUBE}, r"several arrays that may be the cube: choose one of x, z with #cube=KEY"),
        ({"x": CUBE, "y": TRUTH[:, :4]}, r"no array that may be the labels .*#gt=FILE"),
        ({"x": CUBE, "y": TRUTH - 0.5}, "is no map of labels"),
        ({"x": CUBE, "y": TRUTH.astype(int) - 1}, "is no map of labels"),
        ({"x": CUBE, "y": np.minimum(TRUTH, 1)}, "hold 1 classes; a task needs two"),
        ({"x": CUBE, "y": TRUTH, "classes": np.array(["none", "one"])}, "go to 16, its classes name only 0 to 1"),
        ({"x": np.ones((8, 8, 8)), "y": np.eye(8, dtype=int)}, "bands first or last"),
        ({"x": CUBE, "y": TRUTH, "wavelength_nm": np.ones(3)}, "has 3 values .* for 200 bands"),
    ],
)  # fmt: skip
def test_scene_that_cannot_be_understood_is_refused(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write_npz(tmp_path / ("indian_pines.npz" if arrays["x"].shape[2] == 200 else "other.npz"), **arrays)
    with pytest.raises(DataError, match=says):
        open_labelled(f"hyperspectral:{path}")


def test_file_with_pickled_objects_or_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "indian_pines.npz"
    np.savez(path, x=CUBE, y=np.array([[{"run": 1}]], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        open_labelled(f"hyperspectral:{path}")
    path.write_bytes(write_npz(tmp_path / "whole.npz", x=CUBE, y=TRUTH).read_bytes()[:900])
    with pytest.raises(DataError, match="cannot be read"):
        open_labelled(f"hyperspectral:{path}")
    mat = tmp_path / "scene.mat"
    scipy.io.savemat(mat, {"x": CUBE, "y": TRUTH}, do_compression=True)
    whole = mat.read_bytes()
    for data in (b"", b"MATLAB 5.0 MAT-file" + b"\0" * 300, whole[:5000], whole[:200] + bytes(300) + whole[500:]):
        mat.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            open_labelled(f"hyperspectral:{mat}")


def test_a_sensor_of_another_number_of_bands_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", x=CUBE, y=TRUTH)
    with pytest.raises(ConfigError, match="has 200 bands and sensor enmap 224"):
        open_labelled(f"hyperspectral:{path}#sensor=enmap")
    assert len(sensors.get("enmap").bands) == 224
