"""Decoders of segmentation, against the same computations written out in numpy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dofa.errors import DataError
from dofa.model.checkpoint import create
from dofa.model.decoders import DPTDecoder, FCNHead, LinearDecoder, PyramidPooling, UPerNet, on_image

WIDTH, CLASSES = 4, 3
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: LinearDecoder([WIDTH] * 4, CLASSES),
    "upernet": lambda: UPerNet(WIDTH, CLASSES, channels=5),
    "fcn": lambda: FCNHead(WIDTH, CLASSES, channels=5),
    "dpt": lambda: DPTDecoder(WIDTH, CLASSES, channels=5),
}
decoders = pytest.mark.parametrize("name", DECODERS)


def lived_in(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics and factors of its batch norms that are not those of the start."""
    generator = torch.Generator().manual_seed(1)
    module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator, dtype=torch.float64)
            part.running_var = torch.rand(part.num_features, generator=generator, dtype=torch.float64) + 0.5
            if part.affine:
                nn.init.normal_(part.weight, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return module


def random_maps(images: int, rows: int, columns: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, WIDTH, rows, columns, generator=generator, dtype=torch.float64) for _ in range(4)]


# Images (D, h, w) in numpy, one at a time, one place at a time.


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy()


def conv(layer: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight, (k, _), (stride, _) = array(layer.weight), layer.kernel_size, layer.stride
    edge = layer.padding[0] if isinstance(layer.padding, tuple) else 0
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge)))
    rows, columns = ((n + 2 * edge - k) // stride + 1 for n in x.shape[1:])
    out = np.zeros((len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = (weight * window).sum((1, 2, 3))
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def finer(layer: nn.ConvTranspose2d, x: np.ndarray) -> np.ndarray:
    weight, k = array(layer.weight), layer.kernel_size[0]
    out = np.zeros((weight.shape[1], k * x.shape[1], k * x.shape[2]))
    for i, j in np.ndindex(x.shape[1:]):
        out[:, k * i : k * i + k, k * j : k * j + k] = np.einsum("c,cdyx->dyx", x[:, i, j], weight)
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def norm(layer: nn.BatchNorm2d, x: np.ndarray) -> np.ndarray:
    mean, var = array(layer.running_mean)[:, None, None], array(layer.running_var)[:, None, None]
    x = (x - mean) / np.sqrt(var + layer.eps)
    return x * array(layer.weight)[:, None, None] + array(layer.bias)[:, None, None] if layer.affine else x


def relu(x: np.ndarray) -> np.ndarray:
    return x.clip(0)


def layer(three: nn.Sequential, x: np.ndarray) -> np.ndarray:
    return relu(norm(three[1], conv(three[0], x)))


def bilinear(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    for axis, n in zip((1, 2), size, strict=True):
        m = x.shape[axis]
        place = ((np.arange(n) + 0.5) * m / n - 0.5).clip(0, m - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = x.take(low, axis) * (1 - share) + x.take((low + 1).clip(max=m - 1), axis) * share
    return x


def pooling(module: PyramidPooling, x: np.ndarray) -> np.ndarray:
    """Means over 1, 4, 9 and 36 cells, each brought to `channels`, all beside the map itself."""
    beside = [x]
    for bins, stage in zip((1, 2, 3, 6), module.stages, strict=True):
        cells = np.zeros((len(x), bins, bins))
        for i, j in np.ndindex(bins, bins):
            (top, low), (left, right) = (
                (math.floor(k * n / bins), math.ceil((k + 1) * n / bins))
                for k, n in zip((i, j), x.shape[1:], strict=True)
            )
            cells[:, i, j] = x[:, top:low, left:right].mean((1, 2))
        beside.append(bilinear(layer(stage, cells), x.shape[1:]))
    return layer(module.bottleneck, np.concatenate(beside))


@pytest.mark.parametrize("shape", [(6, 6), (7, 5), (1, 1), (3, 13)])
def test_pyramid_pooling_is_the_mean_over_1_4_9_and_36_cells(shape):
    module = lived_in(PyramidPooling(WIDTH, 3))
    x = torch.randn(2, WIDTH, *shape, dtype=torch.float64)
    for image, found in zip(x, module(x), strict=True):
        np.testing.assert_allclose(array(found), pooling(module, array(image)), atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 2)])
def test_upernet_is_the_computation_written_out(shape):
    net = lived_in(UPerNet(WIDTH, CLASSES, channels=3))
    maps, size = random_maps(1, *shape), (7 * shape[0], 7 * shape[1])
    first, second, third, last = (array(m[0]) for m in maps)

    half = norm(net.pyramid.finest[1], finer(net.pyramid.finest[0], first))
    half = half * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(half)
    rows, columns = (-(-n // 2) for n in shape)
    coarse = np.array(
        [[last[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(columns)] for i in range(rows)]
    ).transpose(2, 0, 1)
    levels = [finer(net.pyramid.finest[3], half), finer(net.pyramid.finer, second), third]

    down = [layer(lateral, level) for lateral, level in zip(net.lateral, levels, strict=True)]
    top = pooling(net.pooling, coarse)
    for i, above in ((2, top), (1, None), (0, None)):
        down[i] = down[i] + bilinear(down[i + 1] if above is None else above, down[i].shape[1:])
    smooth = [layer(part, level) for part, level in zip(net.smooth, down, strict=True)] + [top]
    fused = layer(net.fusion, np.concatenate([bilinear(level, down[0].shape[1:]) for level in smooth]))
    expected = bilinear(conv(net.classifier, fused), size)

    assert net(maps, size).shape == (1, CLASSES, *size)
    np.testing.assert_allclose(array(net(maps, size)[0]), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 2)])
def test_dpt_is_the_computation_written_out(shape):
    net = lived_in(DPTDecoder(WIDTH, CLASSES, channels=3))
    maps, size = random_maps(1, *shape), (16 * shape[0], 16 * shape[1])

    def unit(part: nn.Module, x: np.ndarray) -> np.ndarray:
        _, conv1, norm1, _, conv2, norm2 = part.branch
        return x + norm(norm2, conv(conv2, relu(norm(norm1, conv(conv1, relu(x))))))

    levels = [conv(project, array(m[0])) for project, m in zip(net.project, maps, strict=True)]
    four, two, _, half = net.resample
    levels = [finer(four, levels[0]), finer(two, levels[1]), levels[2], conv(half, levels[3])]
    x = conv(net.blend[3], bilinear(unit(net.refine[3], levels[3]), levels[2].shape[1:]))
    x = unit(net.refine[2], x + unit(net.skip[2], levels[2]))
    x = conv(net.blend[2], bilinear(x, levels[1].shape[1:]))
    x = unit(net.refine[1], x + unit(net.skip[1], levels[1]))
    x = conv(net.blend[1], bilinear(x, levels[0].shape[1:]))
    x = unit(net.refine[0], x + unit(net.skip[0], levels[0]))
    x = conv(net.blend[0], bilinear(x, (8 * shape[0], 8 * shape[1])))
    expected = bilinear(conv(net.classifier, layer(net.last, x)), size)
    np.testing.assert_allclose(array(net(maps, size)[0]), expected, atol=1e-12)


def test_the_linear_decoder_folded_is_a_linear_layer_on_raw_features():
    decoder = lived_in(DECODERS["linear"]())
    maps = random_maps(2, 3, 4)
    weight, bias = decoder.folded()
    logits = np.einsum("kd,bdij->bkij", array(weight), np.concatenate([array(m) for m in maps], 1))
    found = decoder(maps, (3, 4))
    np.testing.assert_allclose(array(found), logits + array(bias)[:, None, None], atol=1e-12)


def test_the_auxiliary_head_reads_one_map():
    head = lived_in(FCNHead(WIDTH, CLASSES, channels=5, level=1))
    maps = random_maps(1, 3, 4)
    expected = bilinear(conv(head.classifier, layer(head.convolution, array(maps[1][0]))), (20, 31))
    np.testing.assert_allclose(array(head(maps, (20, 31))[0]), expected, atol=1e-12)


@decoders
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), patch=st.integers(1, 16))
@settings(max_examples=10)
def test_any_grid_of_patches_gives_logits_of_every_pixel(name, rows, columns, patch):
    size = (patch * rows, patch * columns)
    for training in (True, False):
        logits = DECODERS[name]().double().train(training)(random_maps(2, rows, columns), size)
        assert logits.shape == (2, CLASSES, *size)
        assert logits.isfinite().all()


@decoders
def test_every_parameter_and_every_map_it_reads_gets_a_gradient_that_is_more_than_rounding(name):
    torch.manual_seed(0)
    decoder, maps = DECODERS[name]().double(), [m.requires_grad_() for m in random_maps(3, 5, 4)]
    (decoder(maps, (20, 16)) * torch.randn(3, CLASSES, 20, 16, dtype=torch.float64)).sum().backward()
    for label, parameter in decoder.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().max() > 1e-8, label
    assert [m.grad is not None for m in maps] == [name != "fcn" or i == 2 for i in range(4)]


@decoders
def test_a_short_training_learns_a_toy_segmentation_by_heart(name):
    torch.manual_seed(0)
    maps = [m.float() for m in random_maps(2, 4, 4)]
    teacher = torch.randn(CLASSES, WIDTH)
    truth = nn.functional.interpolate(torch.einsum("kd,bdij->bkij", teacher, maps[2]), (16, 16), mode="bilinear")
    labels = truth.argmax(1)
    wide = {
        "linear": lambda: LinearDecoder([WIDTH] * 4, CLASSES),
        "upernet": lambda: UPerNet(WIDTH, CLASSES, channels=16),
        "fcn": lambda: FCNHead(WIDTH, CLASSES, channels=16),
        "dpt": lambda: DPTDecoder(WIDTH, CLASSES, channels=16),
    }
    decoder = wide[name]()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(decoder(maps, (16, 16)), labels).backward()
        optimizer.step()
    right = (decoder.eval()(maps, (16, 16)).argmax(1) == labels).float().mean()
    assert right > 0.93


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.integers(0, 1), st.data())
def test_every_pixel_of_an_image_gets_the_logits_of_its_own_place(rows, columns, patch, offset, data):
    height = data.draw(st.integers(patch * (rows - 1) + 1, patch * rows))
    width = data.draw(st.integers(patch * (columns - 1) + 1, patch * columns))
    covered = torch.arange(rows * columns * patch**2.0).reshape(1, 1, rows * patch, columns * patch)
    found = on_image(covered, (height, width), offset)
    for y, x in np.ndindex(height, width):
        # Token (i, j) covers the pixels from i·p − offset on.
        row, column = (min(n + offset, m * patch - 1) for n, m in ((y, rows), (x, columns)))
        assert found[0, 0, y, x] == covered[0, 0, row, column]


@pytest.mark.parametrize("offset", [0, 1])
def test_an_image_of_broken_patches_goes_from_pixels_to_logits_of_its_pixels(offset):
    model = create("tiny", width=48, depth=4, heads=3, patch=8, image_size=32, patch_offset=offset).eval()
    image = torch.randn(2, 3, 30, 41)
    maps = model.forward_intermediates(image, [0.66, 0.56, 0.49], [0, 1, 2, 3])
    decoder = UPerNet(48, CLASSES, channels=8)
    logits = decoder(maps, (8 * maps[0].shape[-2], 8 * maps[0].shape[-1]))
    assert on_image(logits, (30, 41), offset).shape == (2, CLASSES, 30, 41)


def test_other_maps_than_the_decoder_s_are_refused():
    net, maps = DECODERS["upernet"]().double(), random_maps(2, 4, 4)
    with pytest.raises(DataError, match="the decoder takes 4"):
        net(maps[:3], (16, 16))
    with pytest.raises(DataError, match="with D = 4, 4, 4, 4"):
        net([*maps[:3], maps[3][:, :2]], (16, 16))
    with pytest.raises(DataError, match="same images and size"):
        net([*maps[:3], maps[3][..., :2]], (16, 16))
    with pytest.raises(DataError, match="reads map 2 of 1"):
        DECODERS["fcn"]()(maps[:1], (16, 16))
    with pytest.raises(DataError, match="do not cover an image of 17 × 16"):
        on_image(torch.zeros(1, 2, 16, 16), (17, 16), 0)


def test_a_training_batch_too_small_for_batch_norm_is_refused_and_judged_all_the_same():
    alone = random_maps(1, 4, 4)
    net = DECODERS["upernet"]().double()
    with pytest.raises(DataError, match="a training batch of one image"):
        net(alone, (16, 16))
    assert net.eval()(alone, (16, 16)).isfinite().all()
    assert DECODERS["dpt"]().double()(alone, (16, 16)).isfinite().all()  # its coarsest map has four places
    with pytest.raises(DataError, match="a training batch of one image"):
        DECODERS["dpt"]().double()(random_maps(1, 2, 1), (16, 16))
