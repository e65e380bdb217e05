"""Pictures are legible files with what was asked for in them, and matplotlib is only needed when one is drawn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dofa import plots
from dofa.errors import ConfigError, DataError


def read(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


@given(hnp.arrays(np.float32, (4, 6, 5), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_composite_is_finite_and_within_0_and_1_whatever_the_unit(image):
    picture = plots.composite(image, (2, 1, 0))
    assert picture.shape == (6, 5, 3)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_a_composite_keeps_the_order_of_the_named_bands():
    image = np.zeros((3, 4, 4), np.float32)
    image[2, 0] = 1  # bright first row in band 2 only
    picture = plots.composite(image, (2, 0, 1), percent=(0, 100))
    assert picture[0, :, 0].min() == 1
    assert picture[1:, :, 0].max() == 0
    assert picture[..., 1:].max() == 0


def test_pixels_without_a_measurement_are_grey_and_do_not_move_the_stretch():
    rng = np.random.default_rng(0)
    image = rng.uniform(0.1, 0.2, (3, 16, 16)).astype(np.float32)
    plain = plots.composite(image, (0, 1, 2))
    spoiled = image.copy()
    spoiled[:, 0, 0] = np.nan
    spoiled[:, 1, 1] = -9999
    valid = np.ones((16, 16), bool)
    valid[0, 0] = valid[1, 1] = False
    picture = plots.composite(spoiled, (0, 1, 2), valid_hw=valid)
    assert np.all(picture[~valid] == np.float32(plots.NODATA_GREY))
    assert np.abs(picture[valid] - plain[valid]).max() < 0.05


def test_limits_of_one_image_draw_another_alike():
    image = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 8, 8)
    limits = plots.stretch_limits(image, (0, 1, 2))
    np.testing.assert_array_equal(plots.composite(image, (0, 1, 2)), plots.composite(image, (0, 1, 2), limits=limits))
    brighter = plots.composite(image + 0.05, (0, 1, 2), limits=limits)
    assert brighter.mean() > plots.composite(image, (0, 1, 2)).mean()


@pytest.mark.parametrize("three", [(0, 1), (0, 1, 3), (0, 1, -1)])
def test_a_band_that_is_not_there_is_refused(three):
    with pytest.raises(DataError, match="three band indices"):
        plots.composite(np.zeros((3, 4, 4)), three)


def test_hidden_patches_are_painted_over_and_the_others_kept():
    picture = np.ones((10, 10, 3), np.float32)  # not a multiple of the patch: the last patches are cut off
    hidden = np.zeros((3, 3), bool)
    hidden[0, 1] = hidden[2, 2] = True
    seen = plots.hide_patches(picture, hidden, patch=4)
    assert np.all(seen[0:4, 4:8] == 0.5)
    assert np.all(seen[8:, 8:] == 0.5)
    assert seen.sum() == 300 - 0.5 * 3 * (16 + 4)
    with pytest.raises(DataError, match="do not cover"):
        plots.hide_patches(picture, hidden, patch=3)


def test_pca_colours_separate_two_kinds_of_tokens_and_agree_across_maps():
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(2, 32)) * 5
    maps = []
    for size in ((6, 6), (4, 8)):
        left = np.arange(size[1]) < size[1] // 2
        tokens = np.where(left[None, :, None], kinds[0], kinds[1]) + rng.normal(size=(*size, 32)) * 0.1
        maps.append(tokens.transpose(2, 0, 1))
    first, second = plots.pca_colours(maps)
    assert first.shape == (6, 6, 3)
    assert abs(first[:, :3, 0].mean() - first[:, 3:, 0].mean()) > 0.9
    assert abs(first[:, :3, 0].mean() - second[:, :4, 0].mean()) < 0.1
    np.testing.assert_array_equal(first, plots.pca_colours(maps)[0])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_is_a_png_with_ink_on_a_page_of_the_theme(tmp_path, theme):
    rng = np.random.default_rng(2)
    picture = rng.random((32, 32, 3)).astype(np.float32)
    row = plots.Row("sensor", [("original", picture), ("seen", picture)])
    written = [
        plots.reconstruction_panel(tmp_path / "new" / "panel.png", [row, row], "title", theme),
        plots.pca_features(tmp_path / "pca.png", [("a", picture, rng.random((8, 4, 4)))], theme=theme),
        plots.curves(tmp_path / "curves.png", {"a": ([0, 1], [2, 1]), "b": ([0, 1], [2, 1])}, levels={"a": 1.5}),
        plots.bars(tmp_path / "bars.png", ["x", "y"], {"m": [1, 2], "n": [3, 4]}, {"m": [(0, 2), (1, 3)]}),
        plots.bars(tmp_path / "flat.png", ["x", "y"], [1, 2], [(0, 2), (1, 3)], theme=theme),
    ]
    for path in written:
        pixels = read(path)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 0.01
    corner = read(written[0])[0, 0].mean()
    assert corner > 0.9 if theme == "light" else corner < 0.2


@pytest.mark.parametrize("caption", ["Landsat 8", "Landsat 8,\na delta", "Landsat 8,\na delta\nin 2020"])
def test_a_caption_of_several_lines_is_not_cut_off_at_the_top(tmp_path, caption):
    panel = plots.reconstruction_panel(tmp_path / "p.png", [plots.Row("a", [(caption, np.ones((4, 4, 3)))])])
    pixels = read(panel)
    assert pixels[:4].min() == pixels[:4].max()  # nothing but the page at the upper edge
    assert pixels[4:60].min() < 0.5  # where the caption begins


def test_bars_refuse_values_that_do_not_match_the_names(tmp_path):
    with pytest.raises(DataError, match="'trained' has 2 values for 3 names"):
        plots.bars(tmp_path / "b.png", ["a", "b", "c"], {"trained": [1, 2]})


def test_an_inline_picture_has_the_size_and_colours_it_was_given(tmp_path):
    picture = np.zeros((2, 3, 3), np.float32)
    picture[0, 0] = (1, 0.5, 0)
    path = tmp_path / "p.png"
    path.write_bytes(plots.png_bytes(picture, enlarge=4))
    pixels = read(path)
    assert pixels.shape == (8, 12, 3)
    np.testing.assert_allclose(pixels[:4, :4].reshape(-1, 3), [[1, 128 / 255, 0]] * 16, atol=1e-6)


def test_importing_figures_does_not_import_matplotlib():
    code = "import sys, dofa.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_matplotlib_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # A None entry raises ModuleNotFoundError without a traceback into matplotlib, as an absent package does.
    with pytest.raises(ConfigError, match=r'pip install "dofa\[plot\]"'):
        plots.curves(tmp_path / "c.png", {"a": ([0], [0])})
    assert not (tmp_path / "c.png").exists()
