"""The network against the paper's equations, and the promises of its docstrings."""
import json
import shutil

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import net
from dataset import PairDataset, named_pairs
from net import (
    CPM,
    FDFM,
    RPM,
    AuxiliaryDecoder,
    FrequencyCB,
    FromParts,
    InstanceNorm,
    PooledNorm,
    RPFNet,
    ToParts,
    channel_pools,
    fuse_tiles,
    image_pools,
    is_channels_last,
    split_colour,
    to_image,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RPFNet(channels=8).eval()


def images(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 1, height, width, generator=generator) for _ in range(2)]


# --- the equations, computed again the slow way ---


def slow_conv(x, weight, dilation=1):
    """Convolution as its definition: a sum over the kernel's places of shifted images."""
    kernel = weight.shape[-1]
    reach = dilation * (kernel // 2)
    height, width = x.shape[-2:]
    padded = F.pad(x, (reach,) * 4)
    out = 0
    for i in range(kernel):
        for j in range(kernel):
            shifted = padded[..., i * dilation:i * dilation + height, j * dilation:j * dilation + width]
            out = out + torch.einsum("oc,bchw->bohw", weight[:, :, i, j], shifted)
    return out


def slow_norm(x, block):
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * block[1].weight[:, None, None] + block[1].bias[:, None, None]


def slow_cb(x, block, activation=torch.relu):
    return activation(slow_norm(slow_conv(x, block[0].weight), block))


def scrambled(module, seed=1):
    """Random normalisation weights: their initial 1 and 0 would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def features(channels=4, height=11, width=14):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, channels, height, width, generator=generator) for _ in range(2)]


def test_cpm_is_equations_1_and_2():
    f_f, f_r = features()
    cpm = scrambled(CPM(4, "instance"))
    refined_f, refined_r = cpm(f_f, f_r)
    torch.testing.assert_close(refined_r, slow_cb(f_f, cpm.to_residual) + f_r, atol=1e-4, rtol=1e-4)
    attention = slow_cb(f_r, cpm.to_fusion, torch.sigmoid)
    torch.testing.assert_close(refined_f, attention * f_f + f_f, atol=1e-4, rtol=1e-4)


def test_rpm_is_equation_3():
    x, _ = features()
    rpm = scrambled(RPM(4))
    first, second = rpm.ca.mlp[0], rpm.ca.mlp[2]

    def mlp(v):     # (B, C)
        return torch.relu(v @ first.weight[:, :, 0, 0].T + first.bias) @ second.weight[:, :, 0, 0].T + second.bias

    channel = torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values))[:, :, None, None]
    attended = x * channel
    pooled = torch.stack([attended.mean(1), attended.max(1).values], 1)
    attended = attended * torch.sigmoid(slow_conv(pooled, rpm.sa.conv.weight) + rpm.sa.conv.bias)
    expected = sum(slow_conv(attended, conv.weight, rate) + conv.bias[:, None, None]
                   for conv, rate in zip(rpm.dilated, (1, 3, 5)))
    torch.testing.assert_close(rpm(x), expected, atol=1e-4, rtol=1e-4)


def test_fdfm_is_equation_4():
    x, _ = features(height=5, width=7)
    fdfm = scrambled(FDFM(4, "instance"))
    refined = slow_cb(x, fdfm.refine)
    # The Fourier transform as two matrix products with exp(-2 pi i k n / N).
    height, width = x.shape[-2:]
    rows, columns = (torch.exp(-2j * torch.pi * torch.outer(torch.arange(n), torch.arange(n)) / n) for n in (height, width))
    spectrum = (rows @ refined.to(torch.complex64) @ columns / (height * width) ** 0.5)[..., :width // 2 + 1]
    parts = slow_cb(torch.cat([spectrum.real, spectrum.imag], 1), fdfm.frequency.block)
    real, imaginary = parts.chunk(2, 1)
    back = torch.fft.irfft2(torch.complex(real, imaginary), s=(height, width), norm="ortho")
    torch.testing.assert_close(fdfm(x), slow_cb(x, fdfm.spatial) + back, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 17), (19, 23)])
def test_frequency_branch_with_identity_weights_returns_its_input(size):
    branch = FrequencyCB(3, "instance")
    branch.block[0].weight.data.copy_(torch.eye(6)[:, :, None, None])
    branch.block[1] = branch.block[2] = torch.nn.Identity()
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(branch(x), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [6, 7])
def test_half_spectra_have_the_gradient_of_whole_ones(width):
    x = torch.randn(2, 3, 5, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ToParts.apply, x)
    parts = torch.randn(2, 6, 5, width // 2 + 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: FromParts.apply(p, (5, width)), parts)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("values", [1, 1500, 10**6])        # channels at a time: 1, 3 and all 8
def test_groups_of_channels_change_nothing(monkeypatch, layout, values):
    monkeypatch.setattr(net, "CPU_GROUP", values)
    block = scrambled(FrequencyCB(8, "instance"))
    x = torch.randn(2, 8, 16, 15).contiguous(memory_format=layout)
    expected = block(x.clone().requires_grad_())            # a gradient needs all of the spectrum at once
    with torch.no_grad():
        grouped = block(x)
    torch.testing.assert_close(grouped, expected)
    assert grouped.stride() == x.stride()


@pytest.mark.parametrize("norm", ["pooled", "instance", "batch"])
def test_training_mode_is_the_same_without_gradients(norm):
    torch.manual_seed(0)
    model = RPFNet(channels=8, norm=norm)
    with torch.no_grad():
        without = model(*images(3, 20, 24))
    torch.testing.assert_close(without, model(*images(3, 20, 24)))


def test_inference_pools_as_training_does():
    x = torch.randn(2, 7, 9, 10)                            # an odd number of channels
    with torch.no_grad():
        pools = channel_pools(x) + image_pools(x)
    torch.testing.assert_close(pools, channel_pools(x.requires_grad_()) + (x.mean((2, 3), True), x.amax((2, 3), True)))


def test_pooled_statistics_are_the_batchs_in_training_and_the_images_in_use():
    norm = scrambled(PooledNorm(3))
    x = torch.randn(4, 3, 8, 9) * torch.arange(1, 5).view(4, 1, 1, 1)
    whole = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    single = F.instance_norm(x, None, None, norm.weight, norm.bias)
    torch.testing.assert_close(norm.train()(x), whole)
    torch.testing.assert_close(norm.eval()(x), single)
    assert (whole - single).abs().max() > 0.1


def test_head_and_stems_follow_the_paper(model):
    ir, vis = images(1, 20, 24)
    model.train()       # without the mirrored border
    fused, stages = model(ir, vis, return_features=True)
    assert len(stages) == 4
    torch.testing.assert_close(stages[0].fusion, slow_cb(torch.cat([ir, vis], 1), model.stem_f), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stages[0].residual, slow_cb(ir - vis, model.stem_r), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused, model.head(stages[-1].fusion + stages[-1].residual))


# --- invariants ---


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 16), (61, 47)])
def test_any_size_keeps_its_shape_and_range(model, size):
    fused = model(*images(2, *size))
    assert fused.shape == (2, 1, *size)
    assert 0 <= fused.min() and fused.max() <= 1


@pytest.mark.parametrize("norm", ["instance", "pooled", "batch"])
def test_eval_result_of_an_image_does_not_depend_on_its_batch(norm):
    torch.manual_seed(0)
    model = RPFNet(channels=8, norm=norm)
    model(*images(4, 32, 32, seed=5))           # moves running statistics, where there are any
    model.eval()
    ir, vis = images(3, 33, 40)
    ir[1] = 0                                   # a neighbour with other statistics
    together = model(ir, vis)
    for i in range(3):
        torch.testing.assert_close(together[i:i + 1], model(ir[i:i + 1], vis[i:i + 1]), atol=1e-5, rtol=1e-5)


def test_eval_is_training_mode_on_mirrored_sources_cropped(model):
    pair = images(1, 20, 35)
    mirrored = [F.pad(x, (9, 10, 8, 8), mode="reflect") for x in pair]     # to 36 x 54: 51 to 53 have large factors
    fused, stages = model(*pair, return_features=True)
    assert all(f.shape == (1, 8, 20, 35) for stage in stages for f in stage)
    torch.testing.assert_close(fused, model.train()(*mirrored)[..., 8:-8, 9:-10])


@pytest.mark.parametrize("batch", [1, 2])
def test_memory_layout_changes_nothing_but_speed(model, batch):
    pair = images(batch, 40, 50)
    expected = model(*pair)
    fast = model.to(memory_format=torch.channels_last)(*(x.contiguous(memory_format=torch.channels_last) for x in pair))
    torch.testing.assert_close(fast, expected, atol=1e-5, rtol=1e-5)


def test_a_flat_scene_has_no_frame():
    """Zero padding draws a frame; mirrored sources push it outside."""
    torch.manual_seed(0)
    pair = [torch.full((1, 1, 48, 48), value) for value in (0.3, 0.6)]
    spread = {border: RPFNet(channels=8, border=border).eval()(*pair)[0, 0].std().item() for border in (0, 16)}
    assert spread[16] < 0.25 * spread[0]


def test_running_the_network_leaves_no_state_behind(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = model(*images(1, 40, 32))
    model(*images(2, 24, 24, seed=3))
    torch.testing.assert_close(first, model(*images(1, 40, 32)), atol=0, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("sharing", ["all", "convolutions", "none"])
@pytest.mark.parametrize("norm", ["instance", "pooled", "batch"])
def test_gradients_reach_every_parameter(norm, sharing):
    torch.manual_seed(0)
    # Full width: with 8 channels the attention has 2 hidden units, which may start out dead.
    model, decoder = RPFNet(norm=norm, sharing=sharing), AuxiliaryDecoder()
    fused, stages = model(*images(2, 24, 24), return_features=True)
    (fused.square().mean() + decoder(stages[-1].residual).square().mean()).backward()
    for name, parameter in [*model.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_sharing_counts_parameters():
    count = {s: sum(p.numel() for p in RPFNet(channels=8, sharing=s).parameters()) for s in ("all", "convolutions", "none")}
    stage = sum(p.numel() for p in RPFNet(channels=8).stages[0].parameters())
    assert count["none"] == count["all"] + 2 * stage
    assert count["all"] < count["convolutions"] < count["all"] + 0.2 * stage


def test_autocast_keeps_the_output_in_float32_and_the_picture_close(model):
    pair = images(1, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        fused, stages = model(*pair, return_features=True)
        m_prime = AuxiliaryDecoder(8)(stages[-1].residual)
    assert fused.dtype == m_prime.dtype == torch.float32
    assert (fused - model(*pair)).abs().max() < 0.05


def test_the_auxiliary_decoder_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    decoder, features = AuxiliaryDecoder(8), torch.randn(1, 8, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        fast = decoder(features)
    torch.testing.assert_close(fast, decoder(features), atol=1e-6, rtol=0)


def test_wrong_batches_are_refused_with_what_was_given(model):
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\)"):
        model(torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="15"):
        model(*images(1, 15, 32))
    with pytest.raises(ValueError, match="uint8"):
        model(*(torch.zeros(1, 1, 32, 32, dtype=torch.uint8) for _ in range(2)))
    with pytest.raises(ValueError, match="norm='layer'"):
        RPFNet(norm="layer")
    with pytest.raises(ValueError, match="stages=0"):
        RPFNet(stages=0)


# --- arrays and colour ---


def test_colour_round_trip_is_exact_to_one_level():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.abs(to_image(*split_colour(rgb)).astype(int) - rgb).max() <= 1
    gray = rgb[..., 0]
    assert np.array_equal(to_image(*split_colour(gray)), gray)


def test_luminance_weighs_red_green_and_blue_in_this_order():
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    np.testing.assert_allclose(split_colour(pure)[0][0], [0.299, 0.587, 0.114], atol=1e-3)
    # Y, Cr, Cb of a saturated red through the studio-range matrix, by hand.
    chroma = np.float32([[[0.9, 0.4]]])
    y = 1.164 * (90 / 255 - 16 / 255)
    expected = [y + 1.596 * 0.4, y - 0.813 * 0.4 + 0.392 * 0.1, y - 2.017 * 0.1]
    image = to_image(np.float32([[90 / 255]]), chroma, studio_range=True)
    assert image[0, 0].tolist() == [round(255 * min(max(v, 0), 1)) for v in expected]


def test_studio_range_is_the_published_stretch():
    levels = np.array([[0, 16, 100, 235, 255]], np.uint8)
    stretched = to_image(np.float32(levels) / 255, None, studio_range=True)
    assert stretched.tolist() == [[0, 0, round(1.164 * 84), 255, 255]]
    # A gray visible image has Cr = Cb = 1/2 and stays gray.
    colour = to_image(np.float32(levels) / 255, np.full((1, 5, 2), 0.5, np.float32), studio_range=True)
    assert (colour == stretched[..., None]).all()


def test_fuse_keeps_shape_and_chrominance(model):
    rng = np.random.default_rng(1)
    ir, vis = rng.integers(0, 256, (20, 30), np.uint8), rng.integers(100, 156, (20, 30, 3), np.uint8)
    fused = model.fuse(ir, vis)
    assert fused.shape == vis.shape and fused.dtype == np.uint8
    (_, before), (_, after) = split_colour(vis), split_colour(fused)
    assert np.abs(before - after).max() < 3 / 255
    assert model.fuse(ir, vis[..., 0]).shape == ir.shape


def test_fuse_of_a_training_model_changes_nothing():
    model = RPFNet(channels=8, norm="batch").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.fuse(np.zeros((16, 16), np.uint8), np.full((16, 16), 9, np.uint8))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("ir, vis, error, message", [
    (np.zeros((20, 20), np.float32), np.zeros((20, 20), np.uint8), TypeError, "ir: .*float32"),
    (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8), ValueError, r"ir: .*\(20, 20, 3\)"),
    (np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8), ValueError, r"vis: .*\(20, 20, 4\)"),
    (np.zeros((20, 20), np.uint8), np.zeros((20, 21), np.uint8), ValueError, "aligned"),
    (np.zeros((12, 20), np.uint8), np.zeros((12, 20), np.uint8), ValueError, "too small"),
    ([[0]], np.zeros((12, 20), np.uint8), TypeError, "ir: .*list"),
])
def test_fuse_names_what_was_given(model, ir, vis, error, message):
    with pytest.raises(error, match=message):
        model.fuse(ir, vis)


def test_tiles_cover_the_image_and_blend_without_a_trace():
    pixelwise = lambda ir, vis_y: 0.25 * ir + 0.75 * vis_y      # a network without statistics: tiles must not show
    for size in ((64, 64), (65, 200), (150, 97)):
        pair = images(1, *size)
        torch.testing.assert_close(fuse_tiles(pixelwise, *pair, 64), pixelwise(*pair))
    with pytest.raises(ValueError, match="tile=63"):
        fuse_tiles(pixelwise, *pair, 63)


def test_an_image_of_one_tile_is_fused_as_a_whole(model):
    ir, vis = (np.uint8(255 * x[0, 0].numpy()) for x in images(1, 64, 50))
    assert np.array_equal(model.fuse(ir, vis, tile=64), model.fuse(ir, vis))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_what_works_in_place_leaves_its_inputs_alone(layout):
    f_f, f_r = (torch.randn(2, 8, 20, 24).to(memory_format=layout) for _ in range(2))
    before = f_f.clone(), f_r.clone()
    for module, inputs in ((FrequencyCB(8, "instance"), (f_f,)), (FDFM(8, "instance"), (f_f,)),
                           (CPM(8, "instance"), (f_f, f_r)), (RPM(8), (f_r,))):
        module.eval()(*inputs)
        assert torch.equal(f_f, before[0]) and torch.equal(f_r, before[1])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_gpu_path_keeps_the_memory_layout(batch):
    """On shapes without values, which need no GPU: a change of layout between two convolutions would cost a copy."""
    layouts = []
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        model = RPFNet(channels=8).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
            elif isinstance(module, InstanceNorm):
                module.register_forward_hook(lambda *args: layouts.append(is_channels_last(args[-1])))
        x = torch.empty(batch, 1, 48, 64)
        assert model(x, x).shape == (batch, 1, 48, 64) and model(x, x).device.type == "cuda"
    assert len(layouts) == 2 * 16 and all(layouts)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_network_gives_the_same_picture():
    torch.manual_seed(0)
    network = RPFNet(channels=4, stages=1).optimize()
    pair = images(1, 20, 24)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        expected = network(*pair)
        compiled = network.optimize(compiled=True)(*pair)
    torch.testing.assert_close(compiled, expected, atol=0.01, rtol=0)      # bfloat16 rounds at other places
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1      # nothing in it breaks the graph


def test_optimized_network_gives_the_same_picture_of_real_pairs(data_root):
    pairs = PairDataset(named_pairs("roadscene", data_root / "RoadScene", "val")[:3])
    plain, fast = RPFNet.from_pretrained(), RPFNet.from_pretrained().optimize()
    for sources in pairs.items:
        ir, vis = (x[None] / 255 for x in sources)
        with torch.inference_mode():
            error = (plain(ir, vis) - fast(ir, vis)).square().mean()
        assert -10 * error.log10() > 50      # dB


# --- checkpoints ---


def test_checkpoint_round_trip_with_its_configuration(tmp_path):
    model = RPFNet(channels=8, stages=2, sharing="convolutions").eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps({"config": model.config}))
    torch.save({"model": model.state_dict(), "config": model.config}, tmp_path / "last.pth")
    pair = images(1, 32, 32)
    for name in ("a.pth", "last.pth"):
        loaded = RPFNet.from_pretrained(tmp_path / name)
        assert not loaded.training
        torch.testing.assert_close(loaded(*pair), model(*pair), atol=1e-5, rtol=1e-5)    # another memory layout


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        RPFNet.from_pretrained(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth"):
        RPFNet.from_pretrained(tmp_path / "text.pth")
    torch.save(RPFNet(channels=8).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="put the bare.json"):
        RPFNet.from_pretrained(tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="device nonsense"):
        RPFNet.from_pretrained(tmp_path / "bare.pth", device="nonsense")
    (tmp_path / "other.json").write_text('{"config": {}}')
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth"):
        RPFNet.from_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize("name", [None, "rpfnet_medical.pth"])
def test_shipped_checkpoints_load_and_their_recipe_is_beside_them(name):
    path = net.CHECKPOINT.with_name(name or net.CHECKPOINT.name)
    model = RPFNet.from_pretrained(name and path)
    recipe = json.loads(path.with_suffix(".json").read_text())
    assert recipe["config"] == model.config and recipe["steps"] > 0 and "seed" in recipe["recipe"]
    fused = model(*images(1, 64, 64))
    assert fused.std() > 0.01
