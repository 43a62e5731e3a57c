"""The network against the paper's equations, and the promises of its docstrings."""
import copy
import io
import json
import pickle
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_pair, trained
from torch import nn
from torch.nn import functional as F

import net
import weights
from dataset import PairDataset, named_pairs
from layers import BatchNorm
from net import CPM, FDFM, RPM, AuxiliaryDecoder, RPFNet, TransformerBlock
from recipe import completed

ABLATIONS = {"plain": {}, "none shared": {"sharing": "none"}, "transformer": {"global_branch": "transformer"},
             "w/o CPM": {"cpm": False}, "w/o res prior": {"prior": False}, "one stage": {"stages": 1}}
CHECKPOINTS = Path(net.__file__).parent / "checkpoints"


@pytest.fixture
def model():
    return trained()


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


def slow_cb(x, block, activation=torch.relu):
    """In training mode: the statistics of the batch."""
    x = slow_conv(x, block[0].weight)
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    normalised = (x - mean) / (variance + 1e-5).sqrt()
    return activation(normalised * block[1].weight[:, None, None] + block[1].bias[:, None, None])


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
    cpm = scrambled(CPM(4))
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


def test_fdfm_is_equation_4_with_one_cb_in_both_places():
    x, _ = features(height=5, width=7)
    fdfm = scrambled(FDFM(4))
    spatial = slow_cb(x, fdfm.spatial)
    spectrum = torch.fft.fft2(spatial, norm="ortho")[..., :7 // 2 + 1]
    parts = slow_cb(torch.cat([spectrum.real, spectrum.imag], 1), fdfm.spectral)
    real, imaginary = parts.chunk(2, 1)
    back = torch.fft.irfft2(torch.complex(real, imaginary), s=(5, 7), norm="ortho")
    torch.testing.assert_close(fdfm(x), spatial + back, atol=1e-4, rtol=1e-4)
    assert sum(isinstance(module, nn.Conv2d) for module in fdfm.modules()) == 2


def test_fdfm_sees_the_whole_image_and_its_convolutions_do_not():
    fdfm = FDFM(4).eval()
    x, _ = features(height=40, width=40)
    x.requires_grad_()
    reached = {}
    for name, output in (("whole", fdfm(x)), ("spatial", fdfm.spatial(x))):
        reached[name], = torch.autograd.grad(output[..., 0, 0].sum(), x, retain_graph=True)
    assert (reached["whole"][..., 20:, 20:] != 0).any() and not (reached["spatial"][..., 2:, 2:] != 0).any()


@pytest.mark.parametrize("size", [(16, 16), (20, 37)])
def test_transformer_block_is_attention_with_an_explicit_softmax(size):
    block = scrambled(TransformerBlock(8))
    f_f, _ = features(8, *size)
    heads, width = 4, 2

    def normalised(x, norm):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    x = f_f.flatten(2).transpose(1, 2)                                  # (B, HW, C)
    y = normalised(x, block.norm_attention)
    image = y.transpose(1, 2).reshape(f_f.shape)
    cells = [[image[..., i * size[0] // 16:-(-(i + 1) * size[0] // 16), j * size[1] // 16:-(-(j + 1) * size[1] // 16)]
              .mean((2, 3)) for j in range(16)] for i in range(16)]     # pooled to 16 x 16 places
    places = torch.stack([cell for row in cells for cell in row], 1)    # (B, 256, C)
    query = y @ block.query.weight.T + block.query.bias
    key_value = places @ block.key_value.weight.T + block.key_value.bias
    attended = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        q, k, v = query[..., own], key_value[..., :8][..., own], key_value[..., 8:][..., own]
        weights = (q @ k.transpose(1, 2) / width**0.5).exp()
        attended.append(weights / weights.sum(-1, keepdim=True) @ v)
    x = x + torch.cat(attended, 2) @ block.project.weight.T + block.project.bias
    first, second = block.mlp[0], block.mlp[2]
    hidden = normalised(x, block.norm_mlp) @ first.weight.T + first.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    x = x + hidden @ second.weight.T + second.bias
    torch.testing.assert_close(block(f_f), x.transpose(1, 2).reshape(f_f.shape), atol=1e-4, rtol=1e-4)


def test_stems_stages_and_head_are_joined_as_in_figure_2(model):
    ir, vis = random_pair(2, 20, 24)
    model.train()       # without the mirrored border
    fused, stages = model(ir, vis, return_features=True)
    assert len(stages) == 4
    torch.testing.assert_close(stages[0].fusion, slow_cb(torch.cat([ir, vis], 1), model.stem_f), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stages[0].residual, slow_cb(ir - vis, model.stem_r), atol=1e-4, rtol=1e-4)
    for before, after, stage in zip(stages, stages[1:], model.stages):
        f_f, f_r = stage.cpm(*before)
        torch.testing.assert_close((after.fusion, after.residual), (stage.fdfm(f_f), stage.rpm(f_r)))
    x = stages[-1].fusion + stages[-1].residual
    for block in model.head.blocks:
        x = slow_cb(x, block)
    expected = torch.sigmoid(slow_conv(x, model.head.last.weight) + model.head.last.bias)
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-4)


# --- the ablations of Table 3 ---


def test_without_the_cpm_the_features_go_on_as_they_are():
    model = RPFNet(channels=8, cpm=False)
    before, after = model(*random_pair(2, 20, 24), return_features=True)[1][:2]
    torch.testing.assert_close(after, (model.stages[0].fdfm(before.fusion), model.stages[0].rpm(before.residual)))


def test_without_the_prior_there_is_no_residual_branch():
    model = RPFNet(channels=8, prior=False)
    fused, stages = model(*random_pair(2, 20, 24), return_features=True)
    assert all(stage.residual is None for stage in stages)
    torch.testing.assert_close(fused, model.head(stages[-1].fusion))
    assert not [name for name, _ in model.named_parameters() if "rpm" in name or "cpm" in name or "stem_r" in name]


def test_sharing_counts_parameters():
    def count(module):
        return sum(p.numel() for p in module.parameters())
    shared, apart = (RPFNet(channels=8, sharing=sharing) for sharing in ("convolutions", "none"))
    stage = count(shared.stages[0])
    norms = sum(count(m) for m in shared.stages[0].modules() if isinstance(m, BatchNorm))
    assert 0 < norms < 0.1 * stage
    assert count(apart) - count(shared) == 2 * (stage - norms)      # iterations 2 and 3 share all else
    assert count(shared) == count(RPFNet(channels=8, stages=1)) + 2 * norms


def test_each_iteration_has_statistics_of_its_own(model):
    means = [stage.fdfm.spatial[1].running_mean for stage in model.stages]
    assert all((first - second).abs().max() > 1e-3 for first, second in zip(means, means[1:]))
    weights = [stage.fdfm.spatial[0].weight for stage in model.stages]
    assert weights[0] is weights[1] is weights[2]


# --- invariants ---


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 16), (61, 47)])
@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_any_size_keeps_its_shape_and_range(options, size):
    model = RPFNet(channels=8, **options)
    for mode in (True, False):
        fused = model.train(mode)(*random_pair(2, *size))
        assert fused.shape == (2, 1, *size)
        assert 0 <= fused.min() and fused.max() <= 1


@pytest.mark.parametrize("image_statistics", [False, True])
def test_eval_result_of_an_image_does_not_depend_on_its_batch(model, image_statistics):
    model.use_image_statistics(image_statistics)
    ir, vis = random_pair(3, 33, 40)
    ir[1] = 0                                   # a neighbour with other statistics
    together = model(ir, vis)
    for i in range(3):
        torch.testing.assert_close(together[i:i + 1], model(ir[i:i + 1], vis[i:i + 1]), atol=1e-5, rtol=1e-5)


def mirrored(pair):
    # 20 x 35 to 36 x 54: 51 to 53 have large factors.
    return [F.pad(x, (9, 10, 8, 8), mode="reflect") for x in pair]


def test_eval_is_a_network_without_border_on_mirrored_sources_cropped(model):
    pair = random_pair(1, 20, 35)
    fused, stages = model(*pair, return_features=True)
    assert all(f.shape == (1, 8, 20, 35) for stage in stages for f in stage)
    plain = RPFNet(**model.config | {"border": 0}).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(fused, plain(*mirrored(pair))[..., 8:-8, 9:-10])


def test_image_statistics_are_those_of_train_mode_on_one_image(model):
    """As the published pictures were made; see BatchNorm in layers.py."""
    pair = random_pair(1, 20, 35)
    running = model(*pair)
    published = model.use_image_statistics()(*pair)
    torch.testing.assert_close(model.use_image_statistics(False)(*pair), running)
    assert (published - running).abs().max() > 1e-3
    torch.testing.assert_close(published, model.train()(*mirrored(pair))[..., 8:-8, 9:-10])


@pytest.mark.parametrize("batch", [1, 2])
def test_memory_layout_changes_nothing_but_speed(model, batch):
    pair = random_pair(batch, 40, 50)
    expected = model(*pair)
    fast = model.to(memory_format=torch.channels_last)(*(x.contiguous(memory_format=torch.channels_last) for x in pair))
    torch.testing.assert_close(fast, expected, atol=1e-5, rtol=1e-5)


def test_a_flat_scene_has_no_frame():
    """Zero padding draws a frame; mirrored sources push it outside."""
    pair = [torch.full((1, 1, 48, 48), value) for value in (0.3, 0.6)]
    spread = {border: trained(border=border)(*pair)[0, 0].std().item() for border in (0, 16)}
    assert spread[16] < 0.25 * spread[0]


def test_running_the_network_leaves_no_state_behind(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = model(*random_pair(1, 40, 32))
    model(*random_pair(2, 24, 24, seed=3))
    torch.testing.assert_close(first, model(*random_pair(1, 40, 32)), atol=0, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_gradients_reach_every_parameter(options):
    torch.manual_seed(0)
    # Full width: with 8 channels the attention has 2 hidden units, which may start out dead.
    model, decoder = RPFNet(**options), AuxiliaryDecoder()
    fused, stages = model(*random_pair(2, 24, 24), return_features=True)
    read = stages[-1].residual if options.get("prior", True) else stages[-1].fusion
    (fused.square().mean() + decoder(read).square().mean()).backward()
    for name, parameter in [*model.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_training_mode_is_the_same_without_gradients():
    torch.manual_seed(0)
    model = RPFNet(channels=8)
    with torch.no_grad():
        without = model(*random_pair(3, 20, 24))
    torch.testing.assert_close(without, model(*random_pair(3, 20, 24)))


def test_autocast_keeps_the_output_in_float32_and_the_picture_close(model):
    pair = random_pair(1, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        fused, stages = model(*pair, return_features=True)
        m_prime = AuxiliaryDecoder(8)(stages[-1].residual)
    assert fused.dtype == m_prime.dtype == torch.float32
    assert 0 < (fused - model(*pair)).abs().max() < 0.02        # float32 would give 0


def test_the_auxiliary_decoder_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    decoder, features = AuxiliaryDecoder(8), torch.randn(1, 8, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        fast = decoder(features)
    torch.testing.assert_close(fast, decoder(features), atol=1e-6, rtol=0)


def test_wrong_batches_are_refused_with_what_was_given(model):
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\)"):
        model(torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"B >= 1 .* got \(0, 1, 32, 32\)"):
        model(*[torch.rand(0, 1, 32, 32)] * 2)
    with pytest.raises(TypeError, match=r"expected tensors, got ndarray and ndarray; .* model\.fuse"):
        model(*[np.zeros((32, 32), np.uint8)] * 2)
    with pytest.raises(ValueError, match="15"):
        model(*random_pair(1, 15, 32))
    with pytest.raises(ValueError, match="uint8"):
        model(*(torch.zeros(1, 1, 32, 32, dtype=torch.uint8) for _ in range(2)))


def test_8_bit_values_as_floats_are_refused_in_eval_mode(model):
    ir, vis = random_pair(1, 32, 32)
    for pair in ((255 * ir, vis), (ir, 255 * vis), (2 * ir - 1, vis)):
        for _ in range(2):      # in each batch, on a CPU
            with pytest.raises(ValueError, match=r"values from .*; expected \[0, 1\], so divide 8-bit images by 255"):
                model(*pair)
    model(1.2 * ir - 0.1, vis)      # as after bicubic resampling
    model.train()(255 * ir, vis)    # the losses check the batches of a training


@pytest.mark.parametrize("options", [{"sharing": "all"}, {"global_branch": "wavelet"}, {"stages": 0}, {"channels": 6},
                                     {"border": -1}], ids=str)
def test_unknown_options_are_refused_with_what_was_given(options):
    (name, value), = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        RPFNet(**options)


# --- optimize ---


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_the_optimized_network_gives_the_same_picture(options):
    model, pair = trained(**options), random_pair(2, 20, 24)
    expected = model(*pair)
    fast = copy.deepcopy(model).optimize()
    assert not any(isinstance(module, BatchNorm) for module in fast.modules())
    torch.testing.assert_close(fast(*pair), expected, atol=1e-5, rtol=1e-4)
    assert 1e-4 < (fast.optimize(bfloat16=True)(*pair) - expected).abs().max() < 0.02       # rounding in float32 gives less
    torch.testing.assert_close(model(*pair), expected, atol=0, rtol=0)


def test_a_folded_network_has_no_image_statistics_and_says_so(model):
    model.optimize()
    black = np.zeros((20, 20), np.uint8)
    for use in (model.use_image_statistics, lambda: model.fuse(black, black, as_published=True)):
        with pytest.raises(ValueError, match="optimize") as error:
            use()
        assert "\n" not in str(error.value)


def test_the_compiler_sees_one_graph_with_the_same_picture(monkeypatch):
    """Traced as a whole and computed by PyTorch: generating code takes a minute, and is for GPUs, see below."""
    monkeypatch.setattr(RPFNet, "compile",
                        lambda self, **_: nn.Module.compile(self, backend="aot_eager", fullgraph=True))
    network, pair = trained(channels=4, stages=2).optimize(), random_pair(1, 20, 24)
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = network(*pair)
        torch.testing.assert_close(network.optimize(compiled=True)(*pair), expected, atol=1e-5, rtol=1e-5)


def test_image_statistics_are_not_folded(model):
    """The running statistics would be used, without a message."""
    with pytest.raises(ValueError, match="image statistics"):
        model.use_image_statistics().optimize()


def test_optimized_network_gives_the_same_picture_of_real_pairs(data_root):
    pairs = PairDataset(named_pairs("roadscene", data_root / "RoadScene", "val")[:2])
    plain, fast = RPFNet.from_pretrained(), RPFNet.from_pretrained().optimize(bfloat16=True)
    for sources in pairs.items:
        ir, vis = (torch.from_numpy(x[None, :, :160, :160]) / 255 for x in sources)
        with torch.inference_mode():
            error = (plain(ir, vis) - fast(ir, vis)).square().mean()
        assert -10 * error.log10() > 50      # dB


# --- what researchers do with a module ---


def test_a_copy_is_independent_and_shares_its_convolutions_within(model):
    pair = random_pair(1, 20, 24)
    expected = model(*pair)
    twin = copy.deepcopy(model)
    first, second = (stage.cpm.to_fusion[0].weight for stage in twin.stages[:2])
    assert first is second and first is not model.stages[0].cpm.to_fusion[0].weight
    scrambled(twin)
    torch.testing.assert_close(model(*pair), expected, atol=0, rtol=0)


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("there_and_back", [lambda model: pickle.loads(pickle.dumps(model)), saved, nn.DataParallel],
                         ids=["pickle", "torch.save", "DataParallel"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_whole_module_can_be_stored_and_wrapped(model, there_and_back, fast):
    pair = random_pair(2, 20, 24)
    model = model.optimize(bfloat16=True) if fast else model
    with torch.no_grad():
        torch.testing.assert_close(there_and_back(model)(*pair), model(*pair))


def test_double_precision_works_and_half_is_refused_in_one_line(model):
    pair = random_pair(1, 20, 24)
    expected = model(*pair)
    exact = copy.deepcopy(model).double()(*(x.double() for x in pair))
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), expected, atol=1e-5, rtol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=r"optimize\(bfloat16=True\)") as error:
            copy.deepcopy(model).to(dtype)(*(x.to(dtype) for x in pair))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("fast", [False, True])
def test_images_and_weights_of_two_dtypes_are_refused_in_one_line(model, fast):
    pair = random_pair(1, 20, 24)
    model = model.optimize(bfloat16=fast)
    with pytest.raises(ValueError, match=r"^the images are torch\.float64 and the weights are torch\.float32; .*$"):
        model(*(x.double() for x in pair))
    with pytest.raises(ValueError, match=r"^the images are torch\.float32 and the weights are torch\.float64; .*$"):
        model.double()(*pair)


def test_images_and_weights_on_two_devices_are_refused_in_one_line(model):
    ir, vis_y = random_pair(1, 20, 24)
    for pair in ((ir.to("meta"), vis_y), (ir.to("meta"), vis_y.to("meta"))):
        with pytest.raises(ValueError, match=r"^ir on meta, vis_y on \w+, the weights on cpu; .*\.to\(device\)$"):
            model(*pair)


def test_autocast_converts_images(model):
    pair = [x.bfloat16() for x in random_pair(1, 20, 24)]
    with pytest.raises(ValueError, match=r"the images are torch\.bfloat16"):
        model(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*pair).dtype == torch.float32


def test_gradients_with_respect_to_the_sources_in_eval_mode(model):
    """Against a difference quotient, in float64."""
    model.double()
    ir, vis = (x.double() for x in random_pair(1, 20, 24))
    ir.requires_grad_()
    gradient, = torch.autograd.grad(model(ir, vis).square().sum(), ir)
    direction = torch.randn(ir.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-6 * direction
    quotient = (model(ir + step, vis).square().sum() - model(ir - step, vis).square().sum()) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), quotient, rtol=1e-5, atol=1e-9)


def test_functional_gradients_are_those_of_backward(model):
    ir, vis = random_pair(2, 20, 24)
    parameters = dict(model.named_parameters())

    def loss(parameters, ir):
        return torch.func.functional_call(model, parameters, (ir, vis)).square().mean()

    functional = torch.func.grad(loss)(parameters, ir)
    loss(parameters, ir).backward()
    torch.testing.assert_close(functional, {name: p.grad for name, p in parameters.items()})
    assert torch.func.grad(loss, argnums=1)(parameters, ir).abs().max() > 0
    one_by_one = torch.func.vmap(lambda *pair: model(*(x[None] for x in pair))[0])(ir, vis)
    torch.testing.assert_close(one_by_one, model(ir, vis), atol=1e-5, rtol=1e-5)
    by_two = torch.func.vmap(model)(*(torch.stack([x, x.flip(0)]) for x in (ir, vis)))
    torch.testing.assert_close(by_two[1], model(ir, vis).flip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_trace_is_the_network_at_the_size_it_was_traced_with(model):
    pair = random_pair(1, 20, 33)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)        # sizes become constants, as it says
        traced = torch.jit.trace(model, pair)
        other = random_pair(1, 20, 33, seed=1)
        torch.testing.assert_close(traced(*other), model(*other))


# --- checkpoints ---


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_checkpoint_round_trip_with_its_configuration(tmp_path, options):
    model = trained(**options)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps({"config": model.config}))
    torch.save({"model": model.state_dict(), "config": model.config}, tmp_path / "last.pth")
    pair = random_pair(1, 32, 32)
    for name in ("a.pth", "last.pth"):
        loaded = RPFNet.from_pretrained(tmp_path / name)
        assert not loaded.training and loaded.config == model.config
        torch.testing.assert_close(loaded(*pair), model(*pair), atol=1e-5, rtol=1e-5)    # another memory layout


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        RPFNet.from_pretrained(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth"):
        RPFNet.from_pretrained(tmp_path / "text.pth")
    torch.save(RPFNet(channels=8).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="put the bare.json.*or save a network of your own with torch.save.*model.config"):
        RPFNet.from_pretrained(tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="device nonsense"):
        RPFNet.from_pretrained(tmp_path / "bare.pth", device="nonsense")
    (tmp_path / "bare.json").write_text(json.dumps({"config": {"channels": 8, "norm": "pooled"}}))
    with pytest.raises(ValueError, match="bare.json.*norm"):             # of an earlier version
        RPFNet.from_pretrained(tmp_path / "bare.pth")
    (tmp_path / "other.json").write_text('{"config": {}}')
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth"):
        RPFNet.from_pretrained(tmp_path / "other.pth")


def shipped():
    """The weights that git tracks; all in checkpoints/ where there is no git (a downloaded archive)."""
    try:
        listed = subprocess.run(["git", "ls-files", "rpfnet*.pth"], cwd=CHECKPOINTS, capture_output=True, text=True,
                                check=True)
        found = [CHECKPOINTS / name for name in listed.stdout.split()]
    except (OSError, subprocess.CalledProcessError):
        found = []
    found = found or sorted(CHECKPOINTS.glob("rpfnet*.pth"))     # no git, or only that of an outer repository
    return [pytest.param(path, id=path.name) for path in found]


def test_the_default_checkpoint_is_shipped():
    assert weights.CHECKPOINTS["contrast"] in [param.values[0] for param in shipped()]


@pytest.mark.parametrize("path", shipped())
def test_shipped_checkpoints_load_and_their_recipe_is_beside_them(path):
    import recipe

    model = RPFNet.from_pretrained(path)
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["config"] == model.config and about["steps"] > 0 and about["version"] <= recipe.VERSION
    assert completed(about["recipe"], path.name)["stages"] == model.config["stages"]
    assert about["command"] and about["commit"]
    fused = model(*random_pair(1, 64, 64))
    assert fused.std() > 0.01


# --- on a GPU ---


@pytest.mark.gpu
def test_a_gpu_gives_the_picture_of_the_cpu(model):
    pair = random_pair(2, 45, 60)
    with torch.inference_mode():
        expected = model(*pair)
        on_gpu = [x.cuda() for x in pair]
        model.cuda()
        torch.testing.assert_close(model(*on_gpu).cpu(), expected, atol=2e-3, rtol=0)       # TF32 convolutions
        assert (model.optimize(bfloat16=True)(*on_gpu).cpu() - expected).abs().max() < 0.05


@pytest.mark.gpu
def test_compiled_on_a_gpu_gives_the_same_picture():
    network = trained(channels=8, stages=2).optimize(bfloat16=True).cuda()
    pair = [x.cuda() for x in random_pair(1, 64, 64)]
    with torch.inference_mode():
        expected = network(*pair)
        network.optimize(bfloat16=True, compiled=True)
        for _ in range(3):      # the third call replays the CUDA graph
            torch.testing.assert_close(network(*pair), expected, atol=0.02, rtol=0)
    for _ in range(3):          # also outside of inference mode
        torch.testing.assert_close(network(*pair).clone(), expected, atol=0.02, rtol=0)


def test_a_border_is_at_most_half_of_the_image():
    model = trained(border=1000)
    for size in ((16, 17), (31, 19)):
        assert model(*random_pair(1, *size)).shape[2:] == size


def test_optimize_leaves_the_training_mode_and_needs_no_gradients():
    model = RPFNet(channels=4, stages=1).optimize()
    assert not model.training and not model(*random_pair(1, 20, 24)).requires_grad


def test_values_beyond_the_overshoot_are_refused():
    ir, vis = random_pair(1, 32, 32)
    for wrong in (1.6 * ir / ir.max(), -0.6 * ir / ir.max()):
        with pytest.raises(ValueError, match="ir has values from"):
            trained()(wrong, vis)


def test_the_default_weights_are_those_of_contrast():
    stored = torch.load(weights.CHECKPOINTS["contrast"], weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in RPFNet.from_pretrained().state_dict().items())


def test_an_optimized_network_stays_in_eval_mode_as_a_part_of_another():
    model, pair = trained(), random_pair(1, 40, 50)
    expected = model.optimize()(*pair)
    nn.ModuleList([model]).train()
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(*pair), expected)
    with pytest.raises(ValueError, match="divide 8-bit"):
        model(255 * pair[0], pair[1])


def test_networks_with_other_norms_say_why_they_have_no_image_statistics(model):
    with pytest.raises(ValueError, match="replaced, such as by SyncBatchNorm"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model).use_image_statistics()


def test_eval_features_are_those_of_the_mirrored_sources_cropped(model):
    pair = random_pair(1, 20, 35)
    plain = RPFNet(**model.config | {"border": 0}).eval()
    plain.load_state_dict(model.state_dict())
    stages, whole = (network(*images, return_features=True)[1]
                     for network, images in ((model, pair), (plain, mirrored(pair))))
    for got, padded in zip(stages, whole, strict=True):
        torch.testing.assert_close(tuple(got), tuple(f[..., 8:-8, 9:-10] for f in padded))


def test_iterations_share_linear_layers():
    stages = RPFNet(channels=8, global_branch="transformer").stages
    for first, *others in zip(*((s.fdfm.query.weight, s.fdfm.mlp[2].bias, s.rpm.ca.mlp[0].weight) for s in stages)):
        assert all(other is first for other in others)
