"""Sentinel-2 products in their true layout: written here as ESA lays them out, JPEG 2000 and all, and opened."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dofa.documents import parse_xml
from dofa.errors import ConfigError, DataError
from dofa.scene.grid import Window
from dofa.scene.safe import read_safe
from dofa.scene.scene import open_scene

TILE, TIME = "T33UUP", "20230613T101031"
L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
NATIVE = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60, "B10": 60}  # the others: 20
IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
SIDE = 120  # pixels of 10 m


def write_jp2(path: Path, image, gsd: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", width=image.shape[1], height=image.shape[0], count=1, dtype=image.dtype,
        crs="EPSG:32633", transform=from_origin(399960, 5700000, gsd, gsd), QUALITY="100", REVERSIBLE="YES",
    ) as out:  # fmt: skip
        out.write(image, 1)


def band_image(name: str, gsd: int):
    """Numbers that tell band and place."""
    rng = np.random.default_rng(L1C.index(name))
    side = SIDE * 10 // gsd
    image = rng.integers(1100, 5000, (side, side)).astype(np.uint16)
    image[: 60 // gsd, : 60 // gsd] = 0  # a corner that the swath does not cover
    return image


def make_safe(folder: Path, level: str = "2A", offset: int | None = -1000, baseline: str = "05.09", bands=L1C) -> Path:
    """A product as ESA lays it out: names, folders, metadata, images at the resolutions of the level."""
    root = folder / f"S2A_MSIL{level}_{TIME}_N{baseline.replace('.', '')}_R022_{TILE}_20230613T150000.SAFE"
    granule = f"GRANULE/L{level}_{TILE}_A041632_20230613T101026"
    images = []
    for band in bands:
        gsd = NATIVE.get(band, 20)
        if level == "1C":
            images.append((f"{granule}/IMG_DATA/{TILE}_{TIME}_{band}", band, gsd))
            continue
        if band == "B10":
            continue
        for r in (10, 20, 60):
            if r >= gsd:  # coarser copies stand beside the measured resolution
                images.append((f"{granule}/IMG_DATA/R{r}m/{TILE}_{TIME}_{band}_{r}m", band, r))
    for name, band, gsd in images:
        write_jp2(root / f"{name}.jp2", band_image(band, gsd), gsd)
    if level == "2A":
        for r in (20, 60):
            scl = np.full((SIDE * 10 // r,) * 2, 4, np.uint8)
            scl[-60 * 2 // r :] = 9  # cloud along the lower edge
            name = f"{granule}/IMG_DATA/R{r}m/{TILE}_{TIME}_SCL_{r}m"
            write_jp2(root / f"{name}.jp2", scl, r)
            images.append((name, "SCL", r))
        images.append((f"{granule}/IMG_DATA/R10m/{TILE}_{TIME}_TCI_10m", "TCI", 10))
    (root / f"MTD_MSIL{level}.xml").write_text(metadata(level, baseline, offset, [name for name, *_ in images]))
    return root


def metadata(level: str, baseline: str, offset: int | None, images: list[str]) -> str:
    kind, listed, quantity = {
        "1C": (
            "RADIO_ADD_OFFSET",
            "Radiometric_Offset_List",
            '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>',
        ),
        "2A": (
            "BOA_ADD_OFFSET",
            "BOA_ADD_OFFSET_VALUES_LIST",
            '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
            '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>',
        ),
    }[level]  # fmt: skip
    offsets = "" if offset is None else "".join(f'<{kind} band_id="{i}">{offset}</{kind}>' for i in range(13))
    spectral = "".join(f'<Spectral_Information bandId="{i}" physicalBand="{b}"/>' for i, b in enumerate(IDS))
    files = "".join(f"<IMAGE_FILE>{name}</IMAGE_FILE>" for name in images)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <Product_Organisation><Granule_List>
        <Granule granuleIdentifier="S2A_OPER_MSI_L{level}_TL" imageFormat="JPEG2000">{files}</Granule>
      </Granule_List></Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>
      </Special_Values>
      {quantity}
      <{listed}>{offsets}</{listed}>
      <Spectral_Information_List>{spectral}</Spectral_Information_List>
    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{level}_User_Product>
"""


@pytest.fixture(scope="module")
def l2a(tmp_path_factory) -> Path:
    return make_safe(tmp_path_factory.mktemp("l2a"))


@pytest.fixture(scope="module")
def l1c(tmp_path_factory) -> Path:
    return make_safe(tmp_path_factory.mktemp("l1c"), "1C")


def test_a_level_2a_product_opens_with_its_bands_offset_and_no_data(l2a):
    with open_scene(l2a) as scene:
        assert scene.sensor.name == "sentinel-2-l2a"
        assert scene.sensor.band_names == tuple(b for b in L1C if b != "B10")
        assert (scene.width, scene.height, scene.gsd_m) == (SIDE, SIDE, 10)
        scaling = scene.parts[0].scaling
        assert scaling.unit == "reflectance"
        assert scaling.physical_source == "file"
        assert set(scaling.scale) == {1e-4}
        assert np.allclose(scaling.offset, -0.1)
        (raw,), valid = scene.read(Window(0, 0, SIDE, SIDE))
        for i, name in enumerate(scene.sensor.band_names):
            if NATIVE.get(name, 20) == 10:
                assert np.array_equal(raw[i], band_image(name, 10))
        assert not valid[:6, :6].any()
        assert valid[12:, 12:].all()
        assert scene.warnings == []


def test_each_band_is_read_at_the_resolution_it_was_measured_at(l2a):
    files = {f.bands[0]: f.href for f in read_safe(l2a).part.files}
    assert {b: int(h[-7:-5]) for b, h in files.items()} == {b: NATIVE.get(b, 20) for b in files}


def test_a_level_1c_product_opens_with_its_radiometric_offset(l1c):
    with open_scene(l1c) as scene:
        assert scene.sensor.name == "sentinel-2-l1c"
        assert scene.sensor.band_names == L1C
        physical, valid = scene.read_physical(Window(20, 20, 30, 30))
        expected = band_image("B04", 10)[20:50, 20:50] * 1e-4 - 0.1
        assert valid.all()
        assert np.allclose(physical[L1C.index("B04")], expected, atol=1e-6)


def test_coarser_bands_lie_in_their_place(l2a):
    with open_scene(l2a, bands=["B05", "B04"]) as scene:
        assert scene.sensor.band_names == ("B05", "B04")
        (raw,), _ = scene.read(Window(0, 0, SIDE, SIDE))
        coarse = band_image("B05", 20).astype(float)
        # Pixel (2i, 2j) has its centre a quarter of a coarse pixel above and left of the centre of (i, j).
        inner = coarse[10:50, 10:50]
        rows = 0.75 * inner[1:] + 0.25 * inner[:-1]
        expected = 0.75 * rows[:, 1:] + 0.25 * rows[:, :-1]
        assert np.abs(raw[0, 22:100:2, 22:100:2] - expected).max() <= 0.501


def test_a_product_before_baseline_4_has_no_offset_and_none_is_guessed(tmp_path):
    root = make_safe(tmp_path, offset=None, baseline="02.14", bands=("B02", "B03", "B04", "B08"))
    with open_scene(root) as scene:
        assert set(scene.parts[0].scaling.offset) == {0.0}
        assert any("bands-left-out" in w and "B01" in w for w in scene.warnings)


def test_baseline_4_without_offsets_in_its_metadata_is_refused(tmp_path):
    root = make_safe(tmp_path, offset=None, baseline="04.00", bands=("B02",))
    with pytest.raises(DataError, match=r"baseline 04\.00.*no offset for B02.*--dn-offset"):
        open_scene(root)


def test_scl_leaves_out_its_clouds_by_name_and_by_number(l2a):
    bands = ["B02", "B03", "B04"]
    with (
        open_scene(l2a, bands=bands) as plain,
        open_scene(l2a, bands=bands, mask="SCL") as clear,
        open_scene(l2a, bands=bands, mask="scl", mask_values=["vegetation"]) as bare,
        open_scene(l2a, bands=bands, mask="SCL", mask_values=[9]) as numbered,
    ):
        whole = Window(0, 0, SIDE, SIDE)
        valid = plain.read(whole)[1]
        assert np.array_equal(clear.read(whole)[1], valid & (np.arange(SIDE) < SIDE - 12)[:, None])
        assert np.array_equal(numbered.read(whole)[1], clear.read(whole)[1])
        assert np.array_equal(bare.read(whole)[1], valid & (np.arange(SIDE) >= SIDE - 12)[:, None])


def test_an_unknown_class_is_refused_with_the_nearest(l2a):
    with pytest.raises(ConfigError, match=r"SCL has no class 'cluod'.*cloud-"):
        open_scene(l2a, mask="SCL", mask_values=["cluod"])


def test_a_mask_that_is_nowhere_is_refused_with_what_there_is(l2a):
    with pytest.raises(ConfigError, match="'CLD' is no file, and the scene has SCL"):
        open_scene(l2a, mask="CLD")


def test_its_metadata_file_and_its_zip_are_the_same_scene(l2a, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "product"), "zip", l2a.parent, l2a.name)
    window = Window(30, 40, 50, 60)
    bands = ["B02", "B05", "B01"]
    with (
        open_scene(l2a, bands=bands) as folder,
        open_scene(packed, bands=bands, mask="SCL") as zipped,
        open_scene(l2a / "MTD_MSIL2A.xml", bands=bands) as named,
    ):
        (expected,), valid = folder.read(window)
        for other in (zipped, named):
            (found,), good = other.read(window)
            assert np.array_equal(found, expected)
            assert np.array_equal(good, valid)


def test_the_users_offset_and_scaling_override_the_metadata(l2a):
    with open_scene(l2a, bands=["B04"], dn_offset=0) as scene:
        assert scene.parts[0].scaling.offset == (0.0,)
        assert scene.parts[0].scaling.physical_source == "user"


def test_another_sensor_than_the_metadatas_is_refused(l2a):
    with pytest.raises(DataError, match="is sentinel-2-l2a by its metadata, told is landsat-8-l2-sr"):
        open_scene(l2a, "landsat-8-l2-sr")


def test_a_missing_image_is_a_band_left_out_and_named(tmp_path):
    root = make_safe(tmp_path, "1C", bands=("B02", "B03"))
    next(root.rglob("*_B03.jp2")).unlink()
    with open_scene(root) as scene:
        assert scene.sensor.band_names == ("B02",)
        assert "B03" in scene.warnings[0]
    with pytest.raises(DataError, match=r"B03.*strict"):
        open_scene(root, strict=True)
    with pytest.raises(ConfigError, match="B03"):
        open_scene(root, bands=["B02", "B03"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cc">]><a>&b;</a>', "declares a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares a document type"),
        ("<a><b></a>", "is damaged"),
        ("", "is damaged"),
    ],
)
def test_metadata_that_are_no_plain_xml_are_refused(text, said):
    with pytest.raises(DataError, match=said):
        parse_xml(text.encode(), "MTD_MSIL2A.xml")


def test_images_outside_the_product_are_never_opened(tmp_path):
    root = make_safe(tmp_path, "1C", bands=("B02",))
    write_jp2(tmp_path / "secret_B03.jp2", band_image("B03", 10), 10)
    file = root / "MTD_MSIL1C.xml"
    file.write_text(file.read_text().replace("</Granule>", "<IMAGE_FILE>../secret_B03</IMAGE_FILE></Granule>"))
    with open_scene(root) as scene:
        assert scene.sensor.band_names == ("B02",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("10000</BOA", "ten</BOA", "BOA_QUANTIFICATION_VALUE is 'ten'"),
        ("10000</BOA", "0</BOA", "lack the quantification"),
        ('band_id="1">-1000', 'band_id="1">', "BOA_ADD_OFFSET is None"),
        ("<Granule ", "<Granule/><Granule ", "names 2 granules"),
        ("<IMAGE_FILE>", "<IMAGE_FILE>gone/", "not one of the images"),
    ],
)
def test_damaged_metadata_are_one_clear_line(tmp_path, old, new, said):
    root = make_safe(tmp_path, bands=("B02",))
    file = root / "MTD_MSIL2A.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=said):
        open_scene(root)


def test_a_folder_that_is_another_safe_is_named_as_such(tmp_path):
    root = tmp_path / "S1A_IW_GRDH_1SDV_20230613T101031.SAFE"
    root.mkdir()
    (root / "manifest.safe").write_text("<xfdu/>")
    with pytest.raises(DataError, match="no Sentinel-2 product"):
        open_scene(root)
