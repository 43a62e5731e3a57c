"""numpy images through a network and back; checkpoints are in test_net.py."""
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import numpy as np
import pytest
import torch
from conftest import random_pair, trained
from torch import nn

from images import split_colour, to_image
from inference import _tile_starts, check_arrays, fuse_luminance, fuse_pair, fuse_tiles, in_colour_of, prepare
from layers import BatchNorm


@pytest.fixture
def model():
    return trained()


def pair(height=20, width=30, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width), np.uint8), rng.integers(100, 156, (height, width, 3), np.uint8)


class Average(nn.Module):
    """A network without statistics: what it gives is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25))

    def forward(self, ir, vis_y):
        return self.weight * ir + (1 - self.weight) * vis_y


def test_fuse_is_the_network_on_the_luminance_with_the_colour_of_vis():
    ir, vis = pair()
    y, chrominance = split_colour(vis)
    for studio_range in (False, True):
        expected = to_image(0.25 * ir.astype(np.float32) / 255 + 0.75 * y, chrominance, studio_range)
        fused = fuse_pair(Average(), ir, vis, studio_range)
        assert np.abs(fused.astype(int) - expected).max() <= 1      # a rounding either way


def test_a_network_without_parameters_runs_on_the_cpu():
    class Maximum(nn.Module):
        def forward(self, ir, vis_y):
            return torch.maximum(ir, vis_y)

    ir, vis = pair()
    assert np.array_equal(fuse_pair(Maximum(), ir, vis[..., 0]), np.maximum(ir, vis[..., 0]))


@pytest.mark.parametrize(("output", "given"), [
    (lambda x: torch.cat([x, x, x], 1), r"a tensor \(1, 3, 24, 30\)"), (lambda x: x[:, 0], r"a tensor \(1, 24, 30\)"),
    (lambda x: x[..., 4:-4], r"a tensor \(1, 1, 24, 22\)"), (lambda x: (x, []), "a tuple")])
def test_what_a_network_returns_is_checked(output, given):
    """Many networks return RGB, or features beside the image."""
    class Peer(nn.Module):
        def forward(self, ir, vis_y):
            return output((ir + vis_y) / 2)

    ir, vis = (np.zeros((24, 30), np.uint8) for _ in range(2))
    for tile in (0, 64):
        with pytest.raises(ValueError, match=rf"returned {given}; expected .*\(1, 1, 24, 30\)"):
            fuse_pair(Peer(), ir, vis, tile=tile)


def test_fuse_keeps_shape_and_chrominance(model):
    ir, vis = pair()
    fused = model.fuse(ir, vis)
    assert fused.shape == vis.shape and fused.dtype == np.uint8
    (_, before), (_, after) = split_colour(vis), split_colour(fused)
    assert np.abs(before - after).max() < 3 / 255
    assert model.fuse(ir, vis[..., 0]).shape == ir.shape


def test_several_pairs_in_one_pass_are_fused_as_one_by_one(model):
    pairs = [prepare(*pair(seed=seed)) for seed in range(3)]
    together = fuse_luminance(model, pairs)
    assert together.shape == (3, 20, 30) and together.dtype == np.float32
    np.testing.assert_allclose(together, np.concatenate([fuse_luminance(model, [p]) for p in pairs]), atol=1e-5)
    vis = pair(seed=2)[1]
    assert np.abs(in_colour_of(vis, together[2]).astype(int) - model.fuse(*pair(seed=2))).max() <= 1


def test_float64_networks_take_the_same_images(model):
    ir, vis = pair()
    expected = model.fuse(ir, vis)
    assert np.abs(model.double().fuse(ir, vis).astype(int) - expected).max() <= 1


# --- the network is left as it was ---


def test_fuse_of_a_training_model_changes_nothing():
    model = trained().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = model.fuse(*pair())
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert np.array_equal(model.eval().fuse(*pair()), fused)


@pytest.mark.parametrize("fails", [False, True])
def test_fuse_leaves_the_mode_of_each_part_as_it_was(fails):
    """Fine-tuning with a part frozen in eval mode, and a picture now and then."""
    model = trained().train()
    model.stages.eval()
    before = [module.training for module in model.modules()]
    assert {*before} == {True, False}
    if fails:
        model.head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.fuse(*pair())
    else:
        model.fuse(*pair())
    assert [module.training for module in model.modules()] == before


def test_as_published_is_for_one_call(model):
    ir, vis = pair()
    running = model.fuse(ir, vis)
    published = model.fuse(ir, vis, as_published=True)
    assert np.array_equal(published, trained().use_image_statistics().fuse(ir, vis))
    assert not np.array_equal(published, running) and np.array_equal(model.fuse(ir, vis), running)
    with pytest.raises(ValueError, match="too small"):
        model.fuse(ir[:9], vis[:9], as_published=True)
    assert np.array_equal(model.fuse(ir, vis), running)


def test_hooks_and_stored_tensors_live_through_as_published(model):
    """A hook of another object, and a tensor with a gradient in a module: common in studies."""
    class Counter:
        calls = 0

        def hook(self, *_):
            self.calls += 1

    counter = Counter()
    expected = model.fuse(*pair(), as_published=True)
    model.forward = MethodType(lambda self, *images: type(self).forward(self, *images), model)
    model.head.register_forward_hook(counter.hook)
    model.stored = model(*(torch.rand(1, 1, 20, 20) for _ in range(2)))
    assert np.array_equal(model.fuse(*pair(), as_published=True), expected)
    assert counter.calls == 2 and model.stored.requires_grad


def test_threads_can_share_a_network(model):
    expected = {use: model.fuse(*pair(), as_published=use) for use in (False, True)}
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda use: (use, model.fuse(*pair(), as_published=use)), [False, True] * 20)
        assert all(np.array_equal(fused, expected[use]) for use, fused in results)


def test_as_published_leaves_image_statistics_on_where_they_were(model):
    model.use_image_statistics().fuse(*pair(), as_published=True)
    assert all(module.image_statistics for module in model.modules() if isinstance(module, BatchNorm))


# --- wrong arguments ---


@pytest.mark.parametrize("ir, vis, error, message", [
    (np.zeros((20, 20), np.float32), np.zeros((20, 20), np.uint8), TypeError, r"ir: .*float32; .*np.rint\(255 \* x\)"),
    (np.zeros((20, 20), np.uint16), np.zeros((20, 20), np.uint8), TypeError, "ir: .*uint16; images.read_ir"),
    (np.zeros((20, 20), np.int64), np.zeros((20, 20), np.uint8), TypeError, "ir: .*int64$"),
    (np.zeros((20, 20), np.uint8), None, TypeError, "vis: .*None; did cv2.imread find the file"),
    (torch.zeros(20, 20), torch.zeros(20, 20), TypeError, r"ir: .*a tensor; call model\(ir, vis_y\)"),
    (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8), ValueError, r"ir: .*\(20, 20, 3\); convert it to gray"),
    (np.zeros((20, 20, 1), np.uint8), np.zeros((20, 20), np.uint8), ValueError, "ir: .*; drop the last axis"),
    (np.zeros((2, 20, 20), np.uint8), np.zeros((2, 20, 20), np.uint8), ValueError, "ir: .*; give one image at a time"),
    (np.zeros((20, 20), np.uint8), np.zeros((2, 20, 20, 3), np.uint8), ValueError, "vis: .*; give one image at a time"),
    (np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8), ValueError, r"vis: .*\(20, 20, 4\); drop the alpha"),
    (np.zeros((20, 20), np.uint8), np.zeros((20, 21), np.uint8), ValueError, "aligned"),
    (np.zeros((12, 20), np.uint8), np.zeros((12, 20), np.uint8), ValueError, "too small"),
    ([[0]], np.zeros((12, 20), np.uint8), TypeError, "ir: .*list"),
])
def test_fuse_names_what_was_given(model, ir, vis, error, message):
    with pytest.raises(error, match=message):
        model.fuse(ir, vis)


# --- tiles ---


def test_tiles_cover_the_image_and_blend_without_a_trace():
    network = Average()     # of each pixel alone: tiles must not show
    for size in ((64, 64), (65, 200), (150, 97)):
        inputs = random_pair(1, *size)
        torch.testing.assert_close(fuse_tiles(network, *inputs, 64), network(*inputs))
    with pytest.raises(ValueError, match="tile=63"):
        fuse_tiles(network, *inputs, 63)


def test_an_image_of_one_tile_is_fused_as_a_whole(model):
    ir, vis = pair(64, 50)
    assert np.array_equal(model.fuse(ir, vis, tile=64), model.fuse(ir, vis))


def test_tiles_see_no_more_than_themselves(model):
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    model.fuse(*pair(100, 130), tile=64)
    assert len(sizes) == 2 * 3 and {*sizes} == {(64, 64)}


# --- on a GPU ---


@pytest.mark.gpu
def test_numpy_images_go_through_a_network_on_a_gpu(model):
    ir, vis = pair(40, 50)
    for as_published in (False, True):
        expected = model.cpu().fuse(ir, vis, as_published=as_published)
        assert np.abs(model.cuda().fuse(ir, vis, as_published=as_published).astype(int) - expected).max() <= 2


class Numbers(nn.Module):
    """Gives 1 in the first call, 2 in the second, ..."""
    calls = 0

    def forward(self, ir, vis_y):
        self.calls += 1
        return torch.full_like(ir, self.calls)


def test_tiles_are_blended_linearly_over_a_quarter():
    fused = fuse_tiles(Numbers(), *random_pair(1, 64, 112), 64)     # tiles at 0 and 48
    torch.testing.assert_close(fused[0, 0, 30], 1 + ((torch.arange(112) - 47) / 17).clamp(0, 1))


def test_tiles_overlap_by_a_quarter_or_more():
    for length in range(65, 400):
        starts = _tile_starts(length, 64)
        assert starts[0] == 0 and starts[-1] == length - 64 and np.diff(starts).max() <= 48


@pytest.mark.parametrize("tile", [63, 128.0, "64", True])
def test_a_tile_is_a_whole_number_of_pixels(tile):
    ir, vis = pair()
    with pytest.raises(ValueError, match="a whole number of at least 64"):
        fuse_pair(Average(), ir, vis, tile=tile)


def test_tiles_of_several_pairs_are_those_of_each(model):
    pairs = [prepare(*(np.random.default_rng(seed).integers(0, 256, (80, 90), np.uint8) for _ in range(2))) for seed in range(2)]
    together = fuse_luminance(model, pairs, tile=64)
    alone = np.concatenate([fuse_luminance(model, [each], tile=64) for each in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.05


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_no_picture(value):
    class Broken(nn.Module):
        def forward(self, ir, vis_y):
            return torch.where(ir == ir.max(), value, vis_y)

    ir, vis = pair()
    with pytest.raises(ValueError, match="not finite"):
        fuse_pair(Broken(), ir, vis[..., 0])


def test_the_smallest_images_are_accepted():
    check_arrays(*[np.zeros((16, 16), np.uint8)] * 2)


def test_a_tile_may_be_a_numpy_integer(model):
    image = np.random.default_rng(0).integers(0, 256, (70, 90), np.uint8)
    assert np.array_equal(fuse_pair(model, image, image, tile=np.int64(64)), fuse_pair(model, image, image, tile=64))
