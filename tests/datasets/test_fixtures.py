"""The made-up sets look as the tables of the documents say; the readers have no part in this."""

import ast
import json
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.datasets.fixtures_geobench import LAYOUTS, RGB, SHARES, write_geobench
from tests.datasets.fixtures_published import RESISC45, SEGMUNICH_RAW, write_resisc45, write_segmunich

DOCS = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
DATE = r"_\d{4}-\d{2}-\d{2}"


@dataclass(frozen=True)
class Row:
    """What a document says of one set."""

    bands: list[str]
    dated: bool
    mask: str
    dtype: str
    size: int
    label: str


def table_of(text: str) -> dict[str, Row]:
    """The rows of the twelve sets; macros S2-13, S2-12, S2-10 and S1 are what the text says they are."""
    s2 = re.findall(r"`(.+?)`", re.search(r"^S2-13 = (.*)$", text, re.M)[1])  # type: ignore[index]
    macros = {"S2-13": s2, "S2-12": [b for b in s2 if b[:2] != "10"]}
    macros["S2-10"] = [b for b in macros["S2-12"] if b[:2] not in ("01", "09")]
    s1 = re.findall(r"`(\d\d - [^`]+)`", re.search(r"^(?:\(c\) )?S1: (.*)$", text, re.M)[1])  # type: ignore[index]
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6 or cells[0] not in LAYOUTS:
            continue
        keys = re.sub(r"\*\*.*?\*\*", "", cells[1])
        named, _, masks = keys.partition("; mask")
        ticked = re.findall(r"`(.+?)`", named)
        macro = next((macros[m] for m in macros if m in named), [])
        bands = [*(s1 if "8 × S1" in named else []), *macro, *(b for b in ticked if not b.startswith("_<"))]
        mask = re.search(r"`(label[^`]*)`", masks)
        dtype = cells[2].split()[0].rstrip(",:")
        rows[cells[0]] = Row(bands, any(b.startswith("_<") for b in ticked), mask[1] if mask else "label", dtype,
                             int(re.match(r"\d+", cells[3])[0]), cells[4])  # type: ignore[index]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("geobench")
    return {name: write_geobench(root, name) for name in LAYOUTS}


@pytest.fixture(scope="module", params=["docs", "reference"])
def document(request: pytest.FixtureRequest) -> dict[str, Row]:
    if request.param == "docs":
        return table_of(DOCS.read_text(encoding="utf-8"))
    return table_of((request.getfixturevalue("shared") / "reference" / "datasets.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_dtypes_and_shapes_are_those_of_the_table(
    name: str, made: dict[str, Path], document: dict[str, Row]
) -> None:
    row = document[name]
    files = sorted(made[name].glob("*.hdf5"))
    assert len(files) == 4
    for file in files:
        with h5py.File(file) as opened:
            keys = list(opened)
            masks = [key for key in keys if key.startswith("label")]
            bands = [key for key in keys if key not in masks]
            assert all(re.search(DATE + "$", key) for key in bands) == row.dated
            assert sorted(re.sub(DATE + "$", "", key) for key in bands) == sorted(row.bands)
            for key in bands:
                if key in ("Canopy Height Model", "Neon"):
                    assert opened[key].shape == (40, 40, 1 if key.startswith("C") else 369)
                    continue
                assert opened[key].shape == (row.size, row.size)
                wanted = "float32" if row.dtype == "float" else row.dtype
                assert opened[key].dtype == np.dtype(wanted)
            for key in keys:
                assert opened[key].chunks is None
                assert opened[key].compression is None
                assert not dict(opened[key].attrs)
            if row.label.startswith("mask") or "seg" in str(made[name]):
                shape = re.escape(row.mask).replace("<year>", r"\d{4}")
                assert len(masks) == 1
                assert re.fullmatch(shape, masks[0])
                assert opened[masks[0]].shape == (row.size, row.size)
                assert opened[masks[0]].dtype == (np.int16 if "int16" in row.label else np.uint8)
                count = 2 if "0/1" in row.label else int(row.label.split()[0])
                assert np.unique(opened[masks[0]]).tolist() == list(range(count))
            else:
                assert not masks


def globals_of(pickled: bytes) -> set[tuple[str, str]]:
    """Every module and name that a pickle would import."""
    words: list[Any] = []
    found: set[tuple[str, str]] = set()
    memo: dict[int, Any] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            words.append(argument)
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = words[-1] if words else None
        elif operation.name in ("BINGET", "LONG_BINGET"):
            words.append(memo.get(argument))
        elif operation.name == "STACK_GLOBAL":
            found.add((words[-2], words[-1]))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_attribute_is_the_text_of_a_pickle_and_the_folder_is_whole(name: str, made: dict[str, Path]) -> None:
    for file in made[name].glob("*.hdf5"):
        with h5py.File(file) as opened:
            assert list(opened.attrs) == ["pickle"]
            text = opened.attrs["pickle"]
        assert isinstance(text, str)
        assert text.startswith(("b'\\x80\\x04", 'b"\\x80\\x04'))
        assert {module.split(".")[0] for module, _ in globals_of(ast.literal_eval(text))} <= {
            "geobench", "affine", "rasterio", "datetime", "numpy", "_codecs",
        }  # fmt: skip
    stems = {file.name.removesuffix(".hdf5") for file in made[name].glob("*.hdf5")}
    for partition in ["default_partition.json", *(f"{share}x_train_partition.json" for share in SHARES)]:
        splits = json.loads((made[name] / partition).read_text())
        assert set(splits) == {"train", "valid", "test"}
        assert {stem for part in splits.values() for stem in part} <= stems
    stats = json.loads((made[name] / "band_stats.json").read_text())
    assert set(stats) == {*LAYOUTS[name].bands, "label"}


def test_fixture_of_m_eurosat_is_built_as_the_real_sample(made: dict[str, Path], real_data: Path) -> None:
    real = real_data / "true_formats" / "geobench1" / "classification_v1.0" / "m-eurosat"
    ours = made["m-eurosat"]
    seen = []
    for folder, stem in ((real, "id_1905"), (ours, "id_1")):
        with h5py.File(folder / f"{stem}.hdf5") as opened:
            planes = {key: (a.shape, a.dtype, a.chunks, a.compression, a.fillvalue) for key, a in opened.items()}
            pickled = ast.literal_eval(opened.attrs["pickle"])
            seen.append((planes, dict(opened.attrs).keys(), globals_of(pickled)))
    assert seen[0] == seen[1]
    stats = [json.loads((folder / "band_stats.json").read_text()) for folder in (real, ours)]
    assert {key: set(v) for key, v in stats[0].items()} == {key: set(v) for key, v in stats[1].items()}
    core = [{(m.replace("numpy._core", "numpy.core"), n) for m, n in globals_of((f / "task_specs.pkl").read_bytes())}
            for f in (real, ours)]  # fmt: skip
    assert core[0] == core[1]


def test_resisc45_has_the_45_folders_and_both_kinds_of_lists(tmp_path: Path) -> None:
    assert len(RESISC45) == 45
    assert tuple(sorted(RESISC45)) == RESISC45
    assert (RESISC45[0], RESISC45[44]) == ("airplane", "wetland")
    folder = write_resisc45(tmp_path / "a", "resisc45")
    assert sorted(f.name for f in folder.iterdir()) == list(RESISC45)
    assert (folder / "airplane" / "airplane_001.jpg").is_file()
    assert (tmp_path / "a" / "resisc45-val.txt").read_text().splitlines()[0] == "airplane_002.jpg"
    assert (write_resisc45(tmp_path / "b", "train-val") / "val.txt").is_file()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("source", ["docs", "reference"])
def test_segmunich_labels_are_those_of_the_table(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    import rasterio

    if source == "docs":
        text = DOCS.read_text(encoding="utf-8")
        raw, said = (re.search(rf"^\| {word} \| (.*) \|$", text, re.M)[1].split(" | ")  # type: ignore[index]
                     for word in ("raw", "class"))  # fmt: skip
        codes = {int(r): int(c) for r, c in zip(raw, said, strict=True) if c != "ignored"}
    else:
        text = (request.getfixturevalue("shared") / "reference" / "datasets.md").read_text(encoding="utf-8")
        line = re.search(r"^\| label \| uint8, raw → class: (.*)$", text, re.M)[1]  # type: ignore[index]
        codes = {int(r): int(c) for r, c in re.findall(r"(\d+)→(\d+)", line)}
    assert codes == {raw: label for label, raw in enumerate(SEGMUNICH_RAW)}
    folder = write_segmunich(tmp_path)
    with rasterio.open(folder / "train" / "img" / "10_1.tif") as image:
        assert (image.count, image.height, image.width) == (10, 128, 128)
        assert image.profile["interleave"] == "pixel"
    with rasterio.open(folder / "train" / "label" / "10_1.tif") as label:
        assert label.dtypes == ("uint8",)
        assert set(np.unique(label.read()).tolist()) == {*codes, 255}


def test_the_table_reader_itself_understands_both_documents(document: dict[str, Row]) -> None:
    assert set(document) == set(LAYOUTS)
    assert document["m-so2sat"].bands[0] == "01 - VH.Real"
    assert len(document["m-so2sat"].bands) == 18
    cattle = document["m-nz-cattle"]
    assert (cattle.bands, cattle.dated, cattle.mask) == (list(RGB), True, "label_<year>-01-01")
    assert len(document["m-SA-crop-type"].bands) == 13
    assert not document["m-SA-crop-type"].dated
