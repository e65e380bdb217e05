"""The package as users install it: the base install infers on arrays, and a wheel carries its data."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
