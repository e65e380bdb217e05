"""The package as users install it: the base install infers on arrays, and a wheel carries its data."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from dofa.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
# Everything that only the extras bring: importing one of these in the base install is a bug.
EXTRAS = "rasterio zarr fsspec aiohttp requests PIL lightning_fabric sklearn scipy matplotlib tensorboard pyarrow"


def test_the_base_install_makes_saves_loads_and_specialises_a_model_without_any_extra(tmp_path):
    code = f"""
import sys
blocked = {EXTRAS.split()!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        # torch and huggingface_hub bring fsspec themselves; only our own import of it would be a bug.
        importer = sys._getframe(1)
        while importer and 'importlib' in importer.f_code.co_filename:
            importer = importer.f_back
        own = importer is not None and 'dofa' in importer.f_globals.get('__name__', '')
        if own and name.split('.')[0] in blocked:
            raise ImportError(name + ' is an extra')
sys.meta_path.insert(0, Absent())
import dofa, torch
model = dofa.create('tiny').eval()
dofa.model.checkpoint.save(model, {str(tmp_path / "m")!r})
again = dofa.load({str(tmp_path / "m")!r}).eval()
x = torch.randn(1, 12, 32, 48)
assert torch.equal(model(x, 'sentinel-2-l2a'), again(x, 'sentinel-2-l2a'))
assert again.specialize('sentinel-2-l2a')(x).shape == (1, 192)
print('ok')
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "ok", answer.stderr


@pytest.mark.slow
def test_a_wheel_builds_installs_and_carries_catalogue_recipes_and_samples(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dofa-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("dofa/catalogue/sentinel-2-l2a.yaml", "dofa/recipes/cpu-tiny.yaml", "dofa/samples/LICENCES.md"):
        assert wanted in names
    assert "dofa/py.typed" in names
    assert any(n.startswith("dofa/samples/") and n.endswith(".tif") for n in names)
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import dofa, sys; from dofa import sensors; print(dofa.__file__, len(sensors.catalogue()))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
    )
    file, count = answer.stdout.split()
    assert file.startswith(str(target))
    assert int(count) >= 25


# -- parts of the package --------------------------------------------------------------------------------------------

# What a package brings along, as far as we import it, and names that differ between pip and Python.
BRINGS = {
    "rasterio": "affine", "xarray": "pandas", "distributed": "dask", "geopandas": "pandas shapely pyproj pyogrio",
    "scikit-learn": "scipy", "zarr": "numcodecs",
}  # fmt: skip
IMPORTED = {"pillow": "PIL", "scikit-learn": "sklearn"}


def packages(extra: str) -> set[str]:
    """Import names of what an extra of pyproject.toml installs, other extras within it included."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found: set[str] = set()
    for requirement in named[extra]:
        if inner := re.match(r"dofa\[(.+)\]", requirement):
            found |= set().union(*map(packages, inner[1].split(",")))
            continue
        name = re.split(r"[^\w-]", requirement)[0]
        found |= {IMPORTED.get(name, name).replace("-", "_"), *BRINGS.get(name, "").split()}
    return found


def with_only(extras: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code where nothing but these extras is installed; torch and huggingface_hub bring fsspec and requests."""
    here = set().union(*map(packages, extras)) | {"fsspec", "requests"}
    absent = sorted(packages("all") - here)
    hidden = f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True)


HELP = """
import contextlib, io, json
import dofa
from dofa.cli import VERBS, main
assert main(["--help"]) == 0
said = {}
for verb in VERBS:
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([verb, "--help"])
        except SystemExit as stop:
            status = stop.code
    said[verb] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "scene", "corpus", "train", "tasks"])
def test_every_command_answers_help_or_names_the_extra_it_needs(extra):
    installed = extra.split(",") if extra else []
    answer = with_only(installed, HELP)
    assert answer.returncode == 0, answer.stderr
    for verb, (status, out, err) in json.loads(answer.stdout.splitlines()[-1]).items():
        needs = VERBS[verb].extra.split(",") if VERBS[verb].extra else []
        if set().union(*map(packages, needs)) <= set().union(*map(packages, installed)):
            assert status == 0, f"{verb}: {err}"
        if status == 0:
            assert f"usage: dofa {verb}" in out
        else:
            assert status == 2
            assert err.count("\n") == 1
            assert f'pip install "dofa[{VERBS[verb].extra}]"' in err


@pytest.mark.slow
def test_training_and_probing_need_no_matplotlib(tmp_path):
    store, model = tmp_path / "corpus", tmp_path / "run/model"
    samples = ROOT / "src/dofa/samples/naip-rgbn"
    changes = "model.changes={patch: 8, image_size: 32, width: 48, depth: 2, heads: 3}"
    setting = [changes, f"data.stores=[{store}]", f"run.out={tmp_path / 'run'}", "run.updates=2"]
    rasters = [str(samples / f"{name}_2016.tif") for name in ("west", "east")]
    labels = ["--labels", str(ROOT / "docs/own-labels.geojson"), "--size", "16"]
    data = ["--data", f"chips:{tmp_path / 'chips'}"]
    commands = [
        ["pack", "images", str(samples), "--sensor", "naip-rgbn", "--tile", "64", "--store", str(store)],
        ["pretrain", "--config", "cpu-tiny", "--set", *setting],
        ["chips", *rasters, "--sensor", "naip-rgbn", *labels, "--out", str(tmp_path / "chips")],
        ["probe", "--weights", str(model), *data, "--no-baselines", "--out", str(tmp_path / "probe")],
    ]
    code = f"from dofa.cli import main\nfor command in {commands!r}: assert main(command) == 0, command"
    answer = with_only(["train", "tasks"], code)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "probe/head/head.json").is_file()
