"""The layers below the network: Fourier channels, pools, BatchNorm and its statistics."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers import (
    FAST_LENGTHS,
    BatchNorm,
    ExactStatistics,
    ImagePools,
    at_least_float32,
    channel_pools,
    fast_length,
    fold_batch_norm,
    hermitian,
    irfft2_of_channels,
    rfft2_as_channels,
)
from net import CB, RPFNet

SIZES = [(16, 16), (17, 16), (16, 17), (5, 7)]


# --- Fourier transforms ---


@pytest.mark.parametrize("size", SIZES)
def test_the_spectrum_is_the_definition_with_real_parts_first(size):
    """The transform as two matrix products with exp(-2 pi i k n / N)."""
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    height, width = size
    rows, columns = (torch.exp(-2j * torch.pi * torch.outer(torch.arange(n), torch.arange(n)) / n) for n in size)
    expected = (rows.to(torch.complex128) @ x.to(torch.complex128) @ columns.to(torch.complex128)
                / (height * width) ** 0.5)[..., :width // 2 + 1]
    torch.testing.assert_close(rfft2_as_channels(x), torch.cat([expected.real, expected.imag], 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back_is_the_identity(size):
    x = torch.randn(2, 3, *size)
    parts = rfft2_as_channels(x)
    assert parts.shape == (2, 6, size[0], size[1] // 2 + 1)
    torch.testing.assert_close(irfft2_of_channels(parts, size), x)


@pytest.mark.parametrize("width", [6, 7])
def test_transforms_pass_gradients_back(width):
    x = torch.randn(1, 2, 5, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rfft2_as_channels, x)
    parts = torch.randn(1, 4, 5, width // 2 + 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: irfft2_of_channels(p, (5, width)), parts)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_hermitian_does_not_change_the_inverse(size):
    parts = torch.randn(2, 6, size[0], size[1] // 2 + 1)
    kept = hermitian(parts, size[1])
    assert (kept - parts).abs().max() > 0.1
    torch.testing.assert_close(irfft2_of_channels(kept, size), irfft2_of_channels(parts, size))
    image = torch.randn(2, 3, *size)
    torch.testing.assert_close(hermitian(rfft2_as_channels(image), size[1]), rfft2_as_channels(image))
    torch.testing.assert_close(rfft2_as_channels(irfft2_of_channels(kept, size)), kept)      # as for any real image


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
def test_a_gpu_inverts_any_spectrum_as_a_cpu_does(size):
    parts = torch.randn(2, 6, size[0], size[1] // 2 + 1, requires_grad=True)
    weights = torch.randn(2, 3, *size)
    (irfft2_of_channels(parts, size) * weights).sum().backward()
    there = parts.detach().cuda().requires_grad_()
    image = irfft2_of_channels(there, size)
    (image * weights.cuda()).sum().backward()
    torch.testing.assert_close(image.detach().cpu(), irfft2_of_channels(parts, size).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(there.grad.cpu(), parts.grad, atol=1e-5, rtol=1e-5)


def test_fast_lengths_have_no_large_prime_factor():
    regular = [n for n in range(1, 2**21 + 1) if 30**21 % n == 0]      # 30**21 holds each of 2, 3 and 5 often enough
    assert FAST_LENGTHS == regular
    assert [fast_length(n) for n in range(1, 1000)] == [next(r for r in regular if r >= n) for n in range(1, 1000)]


def test_pools_are_averages_and_maxima():
    x = torch.randn(2, 7, 9, 10)
    average, maximum = ImagePools()(x)
    torch.testing.assert_close(average, x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(maximum, x.amax((2, 3), keepdim=True))
    torch.testing.assert_close(channel_pools(x), torch.stack([x.mean(1), x.amax(1)], 1))


@pytest.mark.parametrize(("given", "expected"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                                 (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_precision_is_raised_and_never_lowered(given, expected):
    assert at_least_float32(torch.ones(1, dtype=given)).dtype == expected


# --- BatchNorm ---


def trained_norm(channels=3, seed=0):
    """A BatchNorm whose weights and running statistics are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    norm = BatchNorm(channels)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    return norm


def by_hand(x, norm, mean, variance):
    mean, variance = (s.expand(len(x), -1)[:, :, None, None] for s in (mean, variance))
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_batch_norm_has_the_batchs_the_running_and_the_images_statistics():
    norm, x = trained_norm(), torch.randn(4, 3, 8, 9) * torch.arange(1, 5).view(4, 1, 1, 1)
    running = norm.running_mean.clone(), norm.running_var.clone()
    torch.testing.assert_close(norm.eval()(x), by_hand(x, norm, *running))
    norm.image_statistics = True
    torch.testing.assert_close(norm(x), by_hand(x, norm, x.mean((2, 3)), x.var((2, 3), correction=0)))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])            # a single image takes a faster way
    torch.testing.assert_close((norm.running_mean, norm.running_var), running)      # none of them changes these
    batch = by_hand(x, norm, x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    torch.testing.assert_close(norm.train()(x), batch)              # in training, always the batch's
    assert not torch.equal(norm.running_mean, running[0])


@pytest.mark.parametrize("bias", [False, True])
def test_folding_is_exact_to_rounding(bias):
    block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=bias), trained_norm(), nn.ReLU()).eval()
    x = torch.randn(2, 2, 9, 10)
    expected = block(x)
    fold_batch_norm(block)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, BatchNorm) for module in block.modules())


def test_only_batch_norm_behind_a_convolution_is_folded():
    """Such as in a block of one's own in net.GLOBAL_BRANCHES."""
    block = nn.Sequential(nn.ReLU(), trained_norm(), nn.Conv2d(3, 3, 1)).eval()
    x = torch.randn(2, 3, 9, 10)
    expected = block(x)
    fold_batch_norm(block)
    assert torch.equal(block(x), expected) and isinstance(block[1], BatchNorm)


def scrambled_network(**options):
    """A network with statistics and weights of its own in each BatchNorm."""
    torch.manual_seed(0)
    model = RPFNet(channels=8, **options).eval()
    for seed, module in enumerate(model.modules()):
        if isinstance(module, BatchNorm):
            module.load_state_dict(trained_norm(module.num_features, seed).state_dict())
    return model


def test_folding_gives_each_iteration_a_convolution_of_its_own():
    """They share weights, and each has statistics of its own."""
    model = scrambled_network()
    shared = [stage.fdfm.spatial[0].weight for stage in model.stages]
    assert shared[0] is shared[1] is shared[2]
    fold_batch_norm(model)
    folded = [stage.fdfm.spatial[0].weight for stage in model.stages]
    assert all((first - second).abs().max() > 1e-3 for first, second in zip(folded, folded[1:]))


# --- running statistics of many batches together ---


def batches(sizes=(3, 2, 1)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 7, generator=generator) * (1 + i) + i for i, size in enumerate(sizes)]


def pass_all(norm, given, weights=None):
    statistics = ExactStatistics(norm)
    for x, weight in zip(given, weights or map(len, given), strict=True):
        norm(x)
        statistics.add(weight)
    return statistics


# PyTorch's running variance of each batch of n values is the unbiased one, larger by n / (n - 1): with batches of 42 to
# 126 values here, the part of the result that is variance within batches is too large by up to 1/41.
WITHIN = 1 / 41


def test_exact_statistics_are_those_of_all_batches_as_one():
    norm, given = BatchNorm(3), batches()
    pass_all(norm, given).store()
    whole = torch.cat(given)
    torch.testing.assert_close(norm.running_mean, whole.mean((0, 2, 3)))
    variance = whole.var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_var, variance, rtol=WITHIN, atol=0)
    assert (norm.running_var > variance).all()
    # To rounding, with that factor taken into account.
    squares = sum(len(x) * (x.var((0, 2, 3)) + x.mean((0, 2, 3)).square()) for x in given) / len(whole)
    torch.testing.assert_close(norm.running_var, squares - norm.running_mean**2, rtol=1e-4, atol=1e-5)


def test_exact_statistics_forget_the_average_and_give_the_momentum_back():
    norm, given = trained_norm(), batches()
    fresh = BatchNorm(3)
    for each in (norm, fresh):
        pass_all(each, given).store()
        assert each.momentum == BatchNorm(3).momentum == 0.1
    torch.testing.assert_close((norm.running_mean, norm.running_var), (fresh.running_mean, fresh.running_var))
    before = norm.running_mean.clone()
    norm(given[0])
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * given[0].mean((0, 2, 3)))


def test_weight_zero_leaves_a_batch_out():
    norm, other = BatchNorm(3), BatchNorm(3)
    given = batches((3, 2))
    pass_all(norm, [*given, 50 + 9 * torch.randn(2, 3, 6, 7)], [3, 2, 0]).store()
    pass_all(other, given).store()
    assert torch.equal(norm.running_mean, other.running_mean) and torch.equal(norm.running_var, other.running_var)


@pytest.mark.parametrize("weights", [[], [0, 0]])
def test_without_images_the_statistics_stay(weights):
    norm = trained_norm()
    before = {name: value.clone() for name, value in norm.named_buffers()}
    with pytest.raises(ValueError, match="no statistics to store"):
        pass_all(norm, batches((3, 2))[:len(weights)], weights).store()
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers()) and norm.momentum == 0.1


def test_processes_are_summed_up():
    """Two halves, each with the sums of the other added, end with the statistics of the whole."""
    given, norm = batches((3, 2, 1, 2)), BatchNorm(3)
    pass_all(norm, given).store()
    halves = BatchNorm(3), BatchNorm(3)
    passed = pass_all(halves[0], given[0::2]), pass_all(halves[1], given[1::2])
    for own, other in (passed, passed[::-1]):
        theirs = iter([torch.tensor(float(other.count)).double(), *(total.clone() for total in other.sums)])
        own.store(lambda x, theirs=theirs: x + next(theirs))
    for half in halves:
        torch.testing.assert_close((half.running_mean, half.running_var), (norm.running_mean, norm.running_var))


def test_exact_statistics_reach_every_layer_of_several_networks():
    blocks = CB(3, 3), CB(3, 3)
    statistics = ExactStatistics(*blocks)
    x = torch.randn(4, 3, 8, 8)
    between = blocks[0](x)
    blocks[1](between)
    statistics.add(4)
    statistics.store()
    for block, given in zip(blocks, (x, between)):
        mean = F.conv2d(given, block[0].weight, padding=1).mean((0, 2, 3))
        torch.testing.assert_close(block[1].running_mean, mean, atol=1e-5, rtol=1e-5)
