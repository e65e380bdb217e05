"""The catalogue holds together, its figures are the true ones, and a user's file is read or refused in one line."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dofa import sensors
from dofa.errors import ConfigError
from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor

NAMES = sensors.names()
FOLDER = Path(sensors.__file__).parents[1] / "catalogue"
DOCS = Path(__file__).parents[1] / "docs" / "sensors.md"

# Every instrument and product level the project promises.
PROMISED = [
    "sentinel-1-grd",
    "sentinel-1-rtc",
    "sentinel-1-satlas",
    "sentinel-2-l1c",
    "sentinel-2-l2a",
    "sentinel-2-dofa9",
    "gaofen-2",
    "naip-rgb",
    "naip-rgbn",
    "enmap",
    "enmap-202",
    "landsat-5-l1",
    "landsat-5-l2-sr",
    "landsat-7-l1",
    "landsat-7-l2-sr",
    "landsat-8-l1-toa",
    "landsat-8-l2-sr",
    "landsat-9-l1-toa",
    "landsat-9-l2-sr",
    "modis-mod09",
    "sentinel-3-olci",
    "planetscope-4",
    "planetscope-8",
    "worldview-2",
    "worldview-3",
    "pleiades",
    "pleiades-neo",
    "spot-6-7",
    "prisma",
    "emit",
    "aviris-indian-pines",
    "hyperion",
    "hls-l30",
    "hls-s30",
    "alos-2-mosaic",
    "skysat",
    "rapideye",
    "rgb-aerial",
]


def wavelengths(sensor: Sensor) -> list[float]:
    return [b.wavelength_um for b in sensor.bands if b.wavelength_um is not None]


def backward_steps(values: list[float]) -> list[float]:
    return [a - b for a, b in pairwise(values) if b < a]


def user_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# The catalogue


def test_the_catalogue_holds_every_promised_sensor():
    assert set(PROMISED) <= set(NAMES)
    assert list(sensors.catalogue()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogue_file_is_named_by_its_sensor(name):
    assert sensors.load(FOLDER / f"{name}.yaml").name == name == name.lower()


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_where_it_is_from(name):
    sensor = sensors.get(name)
    assert sensor.sources
    for source in sensor.sources:
        assert set(source) == {"what", "status", "where"}
        assert source["status"] in ("looked-up", "recalled")
        assert source["what"]
        assert source["where"]
    assert all([sensor.title, sensor.platform, sensor.product, sensor.level])


@pytest.mark.parametrize("name", NAMES)
def test_wavelengths_and_widths_are_plausible(name):
    for band in sensors.get(name).bands:
        if band.kind == "sar":
            assert band.name == band.polarisation
        elif band.kind == "thermal":
            assert 8 < band.wavelength_um < 14
        else:
            assert 0.35 < band.wavelength_um < 2.6
            assert 0.002 <= band.fwhm_um < 0.4


@pytest.mark.parametrize("name", [n for n in NAMES if len(sensors.get(n).bands) > 100])
def test_a_spectrometer_counts_upwards_but_where_its_detectors_overlap(name):
    steps = backward_steps(wavelengths(sensors.get(name)))
    assert len(steps) <= {"aviris-indian-pines": 3, "hyperion": 1, "prisma": 1}.get(name, 0)
    assert all(step < 0.035 for step in steps)


@pytest.mark.parametrize("name", NAMES)
def test_the_rgb_proxy_comes_first_and_is_red_green_and_blue(name):
    sensor = sensors.get(name)
    sees = [any(low < w < high for w in wavelengths(sensor)) for low, high in ((0.6, 0.7), (0.5, 0.6), (0.44, 0.5))]
    if not all(sees):
        assert "rgb" not in sensor.renderings
        return
    assert next(iter(sensor.renderings)) == "rgb"
    red, green, blue = (sensor.band(n).wavelength_um for n in sensor.renderings["rgb"])
    assert 0.62 < red < 0.68
    assert 0.54 < green < 0.57
    assert 0.45 < blue < 0.5


@pytest.mark.parametrize("name", [n for n in NAMES if n != "prisma"])
def test_the_default_scaling_is_sane(name):
    scaling = sensors.get(name).scaling
    typical = {"reflectance": 0.3, "radiance": 60.0, "kelvin": 300.0, "db": -12.0, "linear_power": 0.06}
    for scale, offset, clip in zip(scaling.scale, scaling.offset, scaling.clip, strict=True):
        if scaling.unit in ("uint8", "dn"):
            assert (scale, offset) == (1, 0)
            assert clip == (0, 255) or scaling.unit == "dn"
            continue
        raw = (typical[scaling.unit] - offset) / scale
        # A product of whole numbers keeps a typical value in 16 bits with digits to spare; a float product is physical.
        assert 1000 < raw < 65_535 or scale == 1
    if scaling.mean is not None:
        low, high = scaling.clip[0]
        assert all(low < m < high for m in scaling.mean)
        assert all(0 < s < high - low for s in scaling.std)
        assert scaling.stats_source == "catalogue"


def test_a_product_whose_files_differ_has_no_default_scaling():
    assert sensors.get("prisma").scaling is None


@pytest.mark.parametrize("name", ["sentinel-2-l1c", "sentinel-2-l2a", "sentinel-2-dofa9", "hls-s30"])
def test_sentinel_2_has_its_true_centres(name):
    sensor = sensors.get(name)
    assert [sensor.band(n).wavelength_um for n in ("B02", "B08", "B11")] == [0.4924, 0.8328, 1.6137]


def test_the_sentinel_2_offset_of_baseline_0400_is_not_assumed():
    for name in ("sentinel-2-l1c", "sentinel-2-l2a"):
        scaling = sensors.get(name).scaling
        assert set(scaling.offset) == {0.0}
        assert set(scaling.scale) == {1e-4}


def test_sentinel_2_products_have_their_bands_in_order():
    l1c = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    assert list(sensors.get("sentinel-2-l1c").band_names) == l1c
    assert list(sensors.get("sentinel-2-l2a").band_names) == [b for b in l1c if b != "B10"]
    assert list(sensors.get("sentinel-2-dofa9").band_names) == [
        "B04",
        "B03",
        "B02",
        "B05",
        "B06",
        "B07",
        "B08",
        "B11",
        "B12",
    ]


def test_enmap_202_is_enmap_without_the_water_vapour_bands():
    whole, part = sensors.get("enmap"), sensors.get("enmap-202")
    dropped = {*range(126, 141), *range(160, 167)}
    assert part.bands == tuple(b for i, b in enumerate(whole.bands) if i not in dropped)
    assert len(whole.bands) == 224
    assert part.renderings["rgb"] == tuple(whole.bands[i].name for i in (47, 29, 15))
    assert part.platform == whole.platform


def test_enmap_agrees_with_the_metadata_of_real_products(shared):
    real = json.loads((shared / "data/enmap_hyspecnet11k/enmap_bands.json").read_text())
    sensor = sensors.get("enmap")
    assert [b.wavelength_um for b in sensor.bands] == pytest.approx([v / 1000 for v in real["wavelength_nm"]], abs=1e-9)
    assert [b.fwhm_um for b in sensor.bands] == pytest.approx([v / 1000 for v in real["fwhm_nm"]], abs=1e-9)


def test_enmap_202_carries_the_published_statistics(shared):
    published = json.loads((shared / "reference/enmap_202.json").read_text())
    sensor = sensors.get("enmap-202")
    assert list(sensor.scaling.mean) == published["mean"]
    assert list(sensor.scaling.std) == published["std"]
    # The published list is rounded to a nanometre and from another calibration of the instrument.
    assert wavelengths(sensor) == pytest.approx(published["wavelength_um"], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("sentinel-1-satlas", (166.36275909, 88.45542715), (64.83126309, 43.07350145)),
        ("gaofen-2", (123.94924583, 92.58088583, 97.28130189, 90.31526596), None),
        ("naip-rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ],
)
def test_published_statistics_are_kept_to_the_last_digit(name, mean, std):
    scaling = sensors.get(name).scaling
    assert scaling.mean == mean
    assert std is None or scaling.std == std


def test_sensors_of_one_platform_agree_on_the_bands_they_share():
    seen: dict[tuple[str, str], Band] = {}
    for sensor in sensors.catalogue().values():
        for band in sensor.bands:
            first = seen.setdefault((sensor.platform, band.name), band)
            assert (band.wavelength_um, band.kind) == (first.wavelength_um, first.kind), (sensor.name, band.name)


def test_no_two_sensors_share_a_name_or_alias():
    keys = [k.lower() for s in sensors.catalogue().values() for k in (s.name, *s.aliases)]
    assert sorted(keys) == sorted(set(keys))


def test_the_table_in_the_documentation_is_the_catalogue():
    chapter = DOCS.read_text(encoding="utf-8").split("## The catalogue")[1]
    documented = [line for line in chapter.splitlines() if line.startswith("| `")]
    rows = [sensors.summary(s) for s in sensors.catalogue().values()]
    assert documented == [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in rows]


# Looking up


def test_a_sensor_is_found_by_alias_whatever_the_case():
    assert sensors.get("Sentinel-2") is sensors.get("sentinel-2-l2a")
    assert sensors.get("ENMAP-202") is sensors.get("enmap-202")


def test_looking_up_a_sensor_by_name_reads_its_file_alone(monkeypatch):
    from dofa.sensors import files

    files._catalogued.cache_clear()
    read = []
    parse = files._parse
    monkeypatch.setattr(files, "_parse", lambda raw, origin: read.append(origin) or parse(raw, origin))
    assert sensors.get("naip-rgb").name == "naip-rgb"
    assert read == ["naip-rgb.yaml"]


@pytest.mark.parametrize(
    ("asked", "meant"), [("sentinel2", "sentinel-2"), ("landsat8-l2", "landsat-8-l2-sr"), ("enmap202", "enmap-202")]
)
def test_an_unknown_sensor_is_answered_with_the_nearest_names(asked, meant):
    with pytest.raises(ConfigError, match=f"unknown sensor '{asked}': did you mean .*{meant}.*dofa sensors lists all"):
        sensors.get(asked)


def test_a_name_that_climbs_out_of_the_catalogue_is_unknown():
    with pytest.raises(ConfigError, match="unknown sensor"):
        sensors.get("../catalogue/enmap")


def test_a_band_is_found_by_alias_whatever_the_case():
    sensor = sensors.get("sentinel-2-l2a")
    assert sensor.band("red") is sensor.band("b4") is sensor.band("B04") is sensor.bands[3]
    assert sensor.index(["swir16", "NIR", "B8A"]) == [10, 7, 8]


def test_an_unknown_band_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"sentinel-2-l2a has no band 'b10': did you mean .*B11"):
        sensors.get("sentinel-2-l2a").band("b10")


def test_selected_bands_keep_their_scaling_and_the_renderings_that_are_whole():
    part = sensors.get("sentinel-2-dofa9").select(["B08", "red", "B03"])
    assert part.band_names == part.scaling.bands == ("B08", "B04", "B03")
    assert part.scaling.mean == (101.435633, 114.1099739, 114.81779093)
    assert list(part.renderings) == ["colour-infrared"]


# Plain form and back


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogued_sensor_survives_json(name):
    sensor = sensors.get(name)
    assert Sensor.from_dict(json.loads(json.dumps(sensor.to_dict()))) == sensor


words = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=8).map(lambda s: f"n{s}")
positive = st.floats(1e-3, 1e3, allow_nan=False)


@st.composite
def made_up_sensors(draw: st.DrawFn) -> Sensor:
    names = draw(st.lists(words, min_size=1, max_size=6, unique=True))
    bands = []
    for name in names:
        alias = (f"{name}_also",) if draw(st.booleans()) else ()
        if draw(st.booleans()):
            bands.append(Band(name, None, kind="sar", polarisation=draw(st.sampled_from(["VV", "VH", "HH", "HV"]))))
        else:
            kind = draw(st.sampled_from(["optical", "thermal"]))
            fwhm = draw(st.none() | st.floats(1e-3, 1))
            bands.append(Band(name, draw(st.floats(0.2, 20)), fwhm, kind, None, alias, draw(st.none() | positive)))
    scaling = None
    if draw(st.booleans()):
        n = len(names)
        clip = draw(st.lists(st.none() | st.just((0.0, 1.5)), min_size=n, max_size=n))
        scaling = Scaling.uniform("dn", names, draw(st.lists(positive, min_size=n, max_size=n)), 0.5, clip)
        if draw(st.booleans()):
            scaling = scaling.with_stats([1.0] * n, draw(st.lists(positive, min_size=n, max_size=n)), "catalogue")
    renderings = {"rgb": (names[0], names[-1], names[0])} if draw(st.booleans()) else {}
    text = draw(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12))
    return Sensor(
        draw(words), tuple(bands), draw(positive), text, text, text, text, scaling, renderings, ("other",),
        ({"what": "all", "status": "recalled", "where": text},),
    )  # fmt: skip


@given(made_up_sensors())
def test_any_sensor_survives_json(sensor):
    assert Sensor.from_dict(json.loads(json.dumps(sensor.to_dict()))) == sensor


@given(made_up_sensors())
def test_any_sensor_survives_its_yaml_file(tmp_path_factory, sensor):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(sensor.to_dict(), allow_unicode=True), encoding="utf-8")
    assert sensors.get(str(path)) == sensor


@given(made_up_sensors(), st.randoms(use_true_random=False))
def test_bands_are_selected_in_the_order_asked(sensor, random):
    names = random.sample(sensor.band_names, random.randint(1, len(sensor.bands)))
    part = sensor.select(names)
    assert list(part.band_names) == names
    assert all(part.band(n) == sensor.band(n) for n in names)
    assert part.scaling is None or part.scaling.bands == part.band_names


# A user's own file

MINE = """
name: my-drone
gsd_m: 0.1
scaling: {unit: reflectance, scale: 1e-4, clip: [0, 1.2]}
renderings: {rgb: [red, green, blue]}
bands:
  - {name: 1, wavelength_um: 0.475, fwhm_um: 0.032, aliases: [blue]}
  - {name: 2, wavelength_um: 0.56, fwhm_um: 0.027, aliases: [green]}
  - {name: 3, wavelength_um: 0.668, fwhm_um: 0.014, aliases: [red]}
"""


def test_a_users_sensor_is_read_from_its_file(tmp_path):
    sensor = sensors.get(str(user_file(tmp_path, MINE)))
    assert sensor.band_names == ("1", "2", "3")
    assert sensor.band("red").wavelength_um == 0.668
    assert sensor.scaling == Scaling.uniform("reflectance", ["1", "2", "3"], 1e-4, 0.0, (0.0, 1.2))  # 1e-4 has no dot


def test_issue_nm_wavelengths_are_refused_with_a_hint(tmp_path):
    with pytest.raises(ConfigError, match=r"band 3: .*668 µm .*this looks like nanometres: divide by 1000, 0\.668"):
        sensors.get(str(user_file(tmp_path, MINE.replace("0.668", "668"))))
    with pytest.raises(ConfigError, match="this looks like nanometres"):
        Band("red", 665.0)


def test_the_example_in_the_documentation_is_a_sensor(tmp_path):
    text = DOCS.read_text(encoding="utf-8").split("```yaml")[1].split("```")[0]
    sensor = sensors.load(user_file(tmp_path, text))
    assert sensor.name == "my-drone"
    assert sensor.scaling.scale == (3.0518e-5,) * 5


@pytest.mark.parametrize("wavelength", [0.19, 20.1, 199.0, -0.6, float("nan"), float("inf")])
def test_other_wavelengths_out_of_range_are_refused_without_a_wrong_hint(wavelength):
    with pytest.raises(ConfigError, match=r"outside 0\.2–20 µm$"):
        Band("x", wavelength)


BAND = "{name: a, wavelength_um: 0.5}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\ngsd_m: 1\nbandz: []", "unknown key 'bandz': did you mean bands"),
        (
            "name: x\ngsd_m: 1\nbands: [{name: a, wavelenght_um: 0.5}]",
            "band a: unknown key .*did you mean wavelength_um",
        ),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unt: dn}}", "scaling: unknown key 'unt': did you mean unit"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{scale: 2}}", "unit is missing"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unit: percent}}", "'percent'; known units: reflectance"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unit: dn, scale: [1, 2]}}", "2 values for 1 bands"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unit: dn, clip: [0, 1, 2]}}", r"clip is \[low, high\]"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unit: dn, clip: [1, 0]}}", r"clip of band a is \(1.0, 0.0\)"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unit: dn, mean: [1]}}", "mean and std together"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: {{unit: dn, mean: 1, std: 1}}", "one a band"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nscaling: dn", "scaling holds 'dn' where fields"),
        ("gsd_m: 1\nbands: []", "name is missing"),
        ("name: x\nbands: []", "gsd_m is missing"),
        ("name: x\ngsd_m: 1", "bands is missing"),
        ("name: x\ngsd_m: 1\nbands: []", "has no bands"),
        ("name: x\ngsd_m: 1\nbands: red", "bands is 'red'; a list"),
        ("name: x\ngsd_m: 1\nbands: [red]", "bands is 'red'; a mapping"),
        ("name: x\ngsd_m: 1\nbands: [{wavelength_um: 0.5}]", "name is missing"),
        ("name: x\ngsd_m: 1\nbands: [{name: a}]", "band a: an optical band needs wavelength_um"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, wavelength_um: 665 nm}]", "wavelength_um is '665 nm'; a number"),
        ("name: x\ngsd_m: 1\nbands: [{name: no, wavelength_um: 0.5}]", "name is False; a text is expected, in quotes"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, wavelength_um: 0.5, aliases: red}]", "aliases is 'red'; a list"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, wavelength_um: 0.5, fwhm_um: 0}]", "fwhm_um is 0; micrometres"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, wavelength_um: 0.5, gsd_m: -1}]", "band a: gsd_m is -1"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, wavelength_um: 0.5, kind: radar}]", "'radar'; it is one of optical"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, wavelength_um: 0.5, polarisation: VV}]", "say kind: sar"),
        ("name: x\ngsd_m: 1\nbands: [{name: a, kind: sar}]", "polarisation is None; one of VV"),
        ("name: x\ngsd_m: 1\nbands: [{name: VV, kind: sar, polarisation: VV, wavelength_um: 5}]", "no wavelength here"),
        (
            f"name: x\ngsd_m: 1\nbands: [{BAND}, {{name: b, wavelength_um: 1, aliases: [A]}}]",
            "'a' names both band a and",
        ),
        (f"name: x\ngsd_m: 0\nbands: [{BAND}]", "gsd_m is 0; metres"),
        (f"name: x\ngsd_m: wide\nbands: [{BAND}]", "gsd_m is 'wide'; a number"),
        (f"name: ../x\ngsd_m: 1\nbands: [{BAND}]", "a name has letters"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nrenderings: {{rgb: [a, a]}}", "rgb names 2 bands; three"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nrenderings: {{rgb: aaa}}", "rendering rgb is 'aaa'; a list"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nrenderings: {{rgb: [a, a, c]}}", "no band 'c': known: a"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nrenderings: [a]", "renderings is .*three bands each"),
        (f"name: x\ngsd_m: 1\nbands: [{BAND}]\nsources: [the data sheet]", "sources holds 'the data sheet'"),
        ("- name: x", "a mapping of settings is expected"),
        ("", "a mapping of settings is expected"),
        ("name: [x", "is not YAML"),
        ("name: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_broken_sensor_file_is_one_line_that_names_the_file_and_the_cure(tmp_path, text, said):
    path = user_file(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        sensors.get(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_sensor_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no sensor file .*absent\.yaml"):
        sensors.get(str(tmp_path / "absent.yaml"))
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ConfigError, match=r"picture\.yaml is not YAML"):
        sensors.load(path)


def test_a_scaling_for_other_bands_is_refused():
    scaling = Scaling.uniform("dn", ["b"])
    with pytest.raises(ConfigError, match="scaling is for bands"):
        Sensor("x", (Band("a", 0.5),), 1.0, scaling=scaling)


# What `dofa sensors` prints


def test_the_list_of_sensors_is_plain_and_whole_in_a_pipe(capsys):
    sensors.show()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert all(line == line.rstrip() and "…" not in line for line in lines)


@pytest.mark.parametrize("name", ["emit", "sentinel-1-grd", "landsat-8-l2-st", "prisma", "gaofen-2", "sentinel-3-olci"])
def test_showing_a_sensor_tells_every_band_and_source(name, capsys):
    sensors.show(name)
    out = capsys.readouterr().out
    sensor = sensors.get(name)
    first_words = [line.split()[0] for line in out.splitlines() if line]
    assert [w for w in first_words if w in sensor.band_names] == list(sensor.band_names)
    for source in sensor.sources:
        assert f"{source['status']}: {source['what']} ({source['where']})" in out
    if sensor.scaling is not None and sensor.scaling.mean is not None:
        assert "std" in out


def test_showing_a_sensor_says_what_its_numbers_become(capsys):
    sensors.show("landsat-8-l2-sr")
    assert "reflectance = raw × 2.75e-05 - 0.2" in capsys.readouterr().out
    sensors.show("hyperion")
    assert "radiance = raw × scale" in capsys.readouterr().out
    sensors.show("enmap-202")
    assert "reflectance = raw × 0.0001, clipped to 0–1" in capsys.readouterr().out
    sensors.show("prisma")
    assert "every file has its own scaling" in capsys.readouterr().out


def test_the_command_line_shows_a_sensor_and_refuses_an_unknown_one_in_one_line():
    run = [sys.executable, "-c", "from dofa.cli import main; raise SystemExit(main())", "sensors"]
    shown = subprocess.run([*run, "s2-l2a"], capture_output=True, text=True, check=True)
    assert "B8A" in shown.stdout
    refused = subprocess.run([*run, "sentinel9"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "unknown sensor 'sentinel9'" in refused.stderr
