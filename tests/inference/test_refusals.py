"""What does not belong together, given to the real command: one line that names the file and the cure."""

import json
import re

import numpy as np
import pytest
import torch

import dofa
from dofa.cli import main
from dofa.model.checkpoint import save

from ..scene.conftest import model_and_head, write_tiff

pytest.importorskip("rasterio")

from rasterio.transform import Affine, from_origin

BANDS = ["B02", "B03", "B04", "B08"]
SHORT = {
    "S2": "--sensor sentinel-2-l2a --dn-offset 0",
    "STATS": "--stats scene",
    "HEAD": "--dn-offset 0 --head head",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are wrong in one thing each."""
    folder = tmp_path_factory.mktemp("bad")
    image = (500 + 3000 * np.random.default_rng(0).random((4, 96, 96))).astype(np.uint16)
    told = {"names": BANDS, "nodata": 0}
    write_tiff(folder / "plain.tif", image)
    write_tiff(folder / "named.tif", image, **told)
    write_tiff(folder / "noplace.tif", image, None, transform=Affine.identity(), **told)
    write_tiff(folder / "half.tif", image[:2], names=BANDS[:2], nodata=0)
    write_tiff(folder / "zone34.tif", image[2:], "EPSG:32634", names=BANDS[2:], nodata=0)
    write_tiff(folder / "empty.tif", 0 * image, **told)
    write_tiff(folder / "coarse.tif", image, transform=from_origin(500000, 5000000, 30, 30), **told)
    (folder / "text.tif").write_text("hello")
    whole = write_tiff(folder / "whole.tif", image.repeat(8, 1), tiled=True, blockxsize=16, blockysize=16, **told)
    (folder / "cut.tif").write_bytes(whole.read_bytes()[: 3 * whole.stat().st_size // 5])
    (folder / "there.tif").write_bytes(b"mine")
    model_and_head(folder, folder / "named.tif")
    torch.manual_seed(5)
    for name, patch in (("other", 8), ("patch16", 16)):
        model = dofa.create("tiny", width=48, depth=2, heads=3, patch=patch, image_size=32).eval()
        save(model, folder / name, provenance={})
    save(model, folder / "torn", provenance={})
    config = json.loads((folder / "torn" / "config.json").read_text())
    config["encoder"]["patch"] = 8
    (folder / "torn" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # bands
        ("embed plain.tif S2 STATS --bands B02 B03", "plain.tif: the file has 4 bands, --bands names 2"),
        ("embed plain.tif S2 STATS", "plain.tif: the file has 4 bands without names.* --bands "),
        ("embed plain.tif S2 STATS --bands B02 B03 B04 B99", "plain.tif: .* 'B99': did you mean B09"),
        ("embed plain.tif STATS --wavelengths 490 560 665 842", "plain.tif: .*nanometres: divide"),
        (
            "embed plain.tif STATS",
            "plain.tif: nothing says which sensor its 4 bands.*--sensor planetscope-4",
        ),
        # files
        ("embed cut.tif S2 STATS", "cut.tif.* download it again"),
        ("predict cut.tif HEAD", "cut.tif.* download it again"),
        ("embed text.tif S2 STATS", "text.tif cannot be opened.* download it again"),
        ("embed gone.tif S2 STATS", "gone.tif cannot be opened: .*No such file"),
        ("embed empty.tif S2 STATS", "empty.tif: not one pixel is measured.*nodata"),
        ("predict empty.tif HEAD", "empty.tif: not one pixel is measured.*nodata"),
        # places
        ("embed noplace.tif S2 STATS --format geoparquet", "OUT: the scene has no .*gdal_edit.py -a_srs"),
        ("embed noplace.tif S2 STATS --gsd 20", "noplace.tif: it has no place .* leave out --gsd"),
        ("similar noplace.tif S2 STATS --at 13,52", "noplace.tif has no .* --pixel ROW,COL"),
        ("embed half.tif zone34.tif --stack S2 STATS", "zone34.tif .*EPSG:32634, half.tif .*gdalwarp"),
        # weights and heads
        ("embed named.tif S2 STATS --weights torn", "torn/config.json"),
        ("embed named.tif S2 STATS --weights patch16 --tile 40", "tile 40: .*patch of 16"),
        ("embed named.tif S2 --stats checkpoint", r"named.tif: .*: dofa embed \S*named.tif .*--stats scene$"),
        ("embed named.tif S2 --strict", r"named.tif: .*no statistics .*: dofa embed \S*named.tif .*--stats scene$"),
        ("embed named.tif S2 --stats sentinel", "--stats sentinel: .*no such statistics: .*scene"),
        ("predict named.tif HEAD --weights other", "load the encoder it belon"),
        ("predict named.tif HEAD --weights patch16", "load the encoder it bel"),
        ("predict coarse.tif HEAD", "coarse.tif: .* 30 m, .* 10 m: .*--gsd 10"),
        (
            "predict named.tif S2 STATS --head head",
            r"named.tif: .*leave out --stats.*--head \S*head( (?!--st)\S+)*$",
        ),
        # how it runs
        ("embed named.tif S2 STATS --device gpuu", "device gpuu: .*: leave it out, or name cpu"),
        ("embed named.tif S2 STATS --batch 0", "--batch is 0: at least 1"),
        ("embed named.tif S2 STATS --cluster local:x", "--cluster local:x: .* or local:4"),
        # where it goes
        ("embed named.tif S2 STATS --out there.tif", "there.tif exists: give --overwrite"),
        ("embed named.tif S2 STATS --out model", "model: the name says no format: end it in .tif"),
        ("embed named.tif S2 STATS --out there.tif/x.tif", "there.tif/x.tif: cannot make .*Not a direc"),
        ("embed named.tif half.tif S2 STATS --out x.tif", "x.tif is one file for 2 scenes: name a fol"),
        ("embed named.tif named.tif S2 STATS --out many", "named.tif is named twice: name each"),
    ],
)
def test_the_command_refuses_in_one_line_with_the_file_and_the_cure(folder, tmp_path, words, said, capsys):
    files = {path.name for path in folder.iterdir()} | {"gone.tif", "there.tif/x.tif"}
    words = " ".join(SHORT.get(word, word) for word in words.split()).split()
    words = words if "--weights" in words else [*words, "--weights", "model"]
    out = tmp_path / "x.tif"
    words = [str(folder / w) if w in files else w for w in words]
    words = words if "--out" in words else [*words, "--out", str(out)]
    assert main(words) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x and not x.startswith("embedding:")]
    assert line.startswith("dofa: ")
    assert re.search(said.replace("OUT", str(out)), line), line
    assert not list(tmp_path.iterdir())
    assert (folder / "there.tif").read_bytes() == b"mine"
    assert not list(folder.glob(".*"))
