"""Layers of RPFNet: normalisation, global pooling, Fourier transforms as channels, padding, weight sharing.

net.py is the network as the paper prints it. This module holds operations that PyTorch lacks or computes too slowly. It
also has the Transformer block of the ablation, the folding of BatchNorm, and exact BatchNorm statistics.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from types import MethodType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm, as the paper prints it, with an option for eval mode. (B, C, H, W) -> (B, C, H, W)

    In eval mode it uses the running statistics, as any BatchNorm. With `image_statistics` it uses the statistics of
    each image instead. The published images were made that way: their network was saved and run in train mode.
    """

    image_statistics = False

    def forward(self, x: Tensor) -> Tensor:
        if self.image_statistics and not self.training:
            if len(x) == 1:     # the statistics of the batch are those of the image; this is faster (docs/speed.md)
                return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return super().forward(x)


class ImagePools(nn.Module):
    """Global average and maximum of each channel: (B, C, H, W) -> two tensors (B, C, 1, 1).

    It is a module and not a function, so that video.Steady can attach hooks to all global pools of a network.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type != "cpu":      # on GPUs, one thread would search the maximum of a whole channel
            return x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)


def channel_pools(x: Tensor) -> Tensor:
    """Average and maximum over the channels: (B, C, H, W) -> (B, 2, H, W)."""
    # On CPUs, PyTorch's reductions over the channels of a channels_last tensor are slow (docs/speed.md).
    on_cpu = x.device.type == "cpu"
    average = F.conv2d(x, x.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1])) if on_cpu else x.mean(1, keepdim=True)
    if x.requires_grad or not on_cpu:       # the gradient of the pairwise maximum is slow
        return torch.cat([average, x.amax(1, keepdim=True)], 1)
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2        # for an odd number, both halves contain the middle channel
        x = torch.maximum(x[:, :half], x[:, -half:])
    return torch.cat([average, x], 1)


def check_range(name: str, x: Tensor, low: float, high: float, remedy: str = "") -> bool:
    """Raises ValueError if values of x are outside [low, high], as those of 8-bit images. It waits for a GPU.

    Returns:
        False if x has no values to look at: in a compiled, exported or traced graph, and under torch.func.vmap.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        lowest, highest = (float(value) for value in x.detach().aminmax())
    except RuntimeError:        # vmap
        return False
    if lowest < low or highest > high:      # False for NaN
        raise ValueError(f"{name} has values from {lowest:.4g} to {highest:.4g}; expected [0, 1], so divide 8-bit images by "
                         f"255{remedy}")
    return True


def as_nchw(x: Tensor) -> Tensor:
    """x with contiguous images (H, W). A channels_last tensor is transposed as a matrix: faster than PyTorch's copy.

    In memory, the channels then come before the images of the batch. The FFT needs no other order.
    """
    if x.is_contiguous() or not x.permute(0, 2, 3, 1).is_contiguous():      # vmap knows no memory formats
        return x.contiguous()
    by_channel = x.transpose(0, 1)
    return by_channel.flatten(1).contiguous().view(by_channel.shape).transpose(0, 1)


def at_least_float32(x: Tensor) -> Tensor:
    """x as float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def rfft2_as_channels(x: Tensor) -> Tensor:
    """Orthonormal 2-D spectrum, real parts first, then imaginary parts: (B, C, H, W) -> (B, 2C, H, W/2+1).

    x is float32 or float64. PyTorch has no FFT for bfloat16.
    """
    if torch.onnx.is_in_onnx_export():
        return _rfft2_as_products(x)
    # In NCHW layout: the FFT of a channels_last tensor is slower (docs/speed.md).
    spectrum = torch.fft.rfft2(as_nchw(x), norm="ortho")
    return torch.cat([spectrum.real, spectrum.imag], 1)


def irfft2_of_channels(parts: Tensor, size: Sequence[int]) -> Tensor:
    """Inverse of `rfft2_as_channels`: (B, 2C, H, W/2+1) -> (B, C, H, W). `size` is (H, W)."""
    if torch.onnx.is_in_onnx_export():
        return _irfft2_as_products(parts, size)
    if parts.device.type != "cpu":
        parts = hermitian(parts, size[1])
    # Without s, the result for an odd width would be one pixel too narrow.
    return torch.fft.irfft2(torch.complex(*parts.chunk(2, 1)), s=size, norm="ortho")


def hermitian(parts: Tensor, width: int) -> Tensor:
    """Make a spectrum Hermitian, like the spectrum of a real image of this width.

    Input and output: (B, 2C, H, W/2+1), real parts first.

    The columns of frequency 0 and, for an even width, of the Nyquist frequency must be Hermitian along H. After a ReLU
    they are not. The inverse on CPUs ignores what is not Hermitian there. That of cuFFT is then undefined (PyTorch issue
    69627), so it is removed first.
    """
    edges = slice(None, None, width if width % 2 else width // 2)      # an odd width has no Nyquist frequency
    columns = parts[..., edges]
    real, imaginary = columns.flip(-2).roll(1, -2).chunk(2, 1)          # at the opposite frequency along H
    parts = parts.clone()       # the backward pass of the ReLU before needs its output
    parts[..., edges] = (columns + torch.cat([real, -imaginary], 1)) / 2
    return parts


# The transforms for ONNX are matrix products. ONNX runtimes reject the inverse of a one-sided spectrum, and their DFT
# of a two-sided spectrum is slow (docs/export.md).


def _rfft2_as_products(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    spectrum = _dft(x.mT.unsqueeze(-3), width, width // 2 + 1, -1).mT           # (B, C, 2, H, W/2+1)
    return _dft(spectrum, height, height, -1).transpose(1, 2).flatten(1, 2)      # (B, 2C, H, W/2+1)


def _irfft2_as_products(parts: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    columns = _dft(parts.unflatten(1, (2, -1)).transpose(1, 2), height, height, 1).mT       # (B, C, 2, W/2+1, H)
    frequency = torch.arange(columns.shape[-2], device=parts.device)[:, None]
    # A one-sided spectrum holds each frequency between 0 and the Nyquist frequency once, and the sum needs it twice.
    twice = 1 + ((frequency > 0) & (2 * frequency < width)).to(parts)
    return _dft(columns * twice, width, width, 1, parts=1).squeeze(-3).mT


def _dft(x: Tensor, length: int, outputs: int, sign: int, parts: int = 2) -> Tensor:
    """Orthonormal discrete Fourier transform along axis -2: the sum over j of x_j exp(sign 2 pi i j k / length).

    It is computed as two short matrix products (Cooley and Tukey 1965): j = step j1 + j2 and k = k1 + count k2, with
    count * step = length. If the length is prime or is not known yet, the second product is the whole transform.

    Args:
        x: real and imaginary parts, (..., 2, J, N), or real parts only, (..., 1, J, N), with J <= length.
        length: number of samples of the transform.
        outputs: number of frequencies k, which begin at 0.
        sign: -1 for the forward transform, 1 for the inverse.
        parts: 2 for real and imaginary parts of the result, 1 for real parts only.
    Returns:
        (..., parts, outputs, N)
    """
    *batch, given, inputs, others = x.shape
    count = _divisor(length)
    step, columns = length // count if count > 1 else inputs, -(-outputs // count)
    library = torch if isinstance(length, torch.SymInt) else np     # NumPy results become constants in the graph
    j2, k1, k2 = (library.arange(n, dtype=library.float64) for n in (step, count, columns))
    # A product with exp(i a) is a product with a real 2 x 2 matrix. Its entries are the cosines of a plus these angles.
    quarters = library.asarray([[0, 1], [-1, 0]], dtype=library.float64) * (math.pi / 2)
    turn = sign * 2 * math.pi / length
    if count > 1:
        rows = -(-inputs // step)
        j1 = library.arange(rows, dtype=library.float64)
        angles = turn * step * k1[:, None, None, None] * j1 + quarters[:, :given, None]     # (k1, 2, given, j1)
        first = _in_dtype_of(x, library.cos(angles)).reshape(count * 2, given * rows)
        x = F.pad(x, (0, 0, 0, rows * step - inputs)).reshape(*batch, given * rows, step * others)
        x, given = first @ x, 2                                                             # (..., k1 2, j2 N)
    angles = turn * (k1[:, None, None, None, None] + count * k2[:, None, None]) * j2
    angles = angles + quarters[:parts, None, :given, None]                                  # (k1, parts, k2, given, j2)
    second = library.cos(angles).reshape(count, parts * columns, given * step) / length**0.5
    x = _in_dtype_of(x, second) @ x.reshape(*batch, count, given * step, others)      # (..., k1, parts k2, N)
    x = x.reshape(*batch, count, parts, columns, others).movedim(-4, -2)                    # (..., parts, k2, k1, N)
    return x.reshape(*batch, parts, columns * count, others)[..., :outputs, :]


def _in_dtype_of(x: Tensor, matrix: Tensor | np.ndarray) -> Tensor:
    if isinstance(matrix, np.ndarray) and x.dtype == torch.float32:
        matrix = matrix.astype(np.float32)      # halves the size of the constant in the file
    return torch.as_tensor(matrix).to(x)


def _divisor(length: int) -> int:
    """The largest divisor up to the square root; 1 if the length is symbolic (torch.export with dynamic sizes)."""
    if isinstance(length, torch.SymInt):
        return 1
    return max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)


# Numbers without a prime factor above 5. OpenCV reads images with sides up to 2**20, and padding is added.
FAST_LENGTHS = sorted(n for i in range(22) for j in range(14) for k in range(10) if (n := 2**i * 3**j * 5**k) <= 2**21)


def fast_length(length: int) -> int:
    """The smallest number >= `length` without a prime factor above 5. FFTs of such lengths are fast."""
    if not isinstance(length, torch.SymInt):
        return next(n for n in FAST_LENGTHS if n >= length)
    # A symbolic length (torch.export): the search must be part of the graph.
    numbers = torch.tensor(FAST_LENGTHS)
    found = numbers[(numbers < length).sum()].item()
    torch._check(found >= length)
    torch._check(found <= 2 * length)
    return found


def mirror_pads(size: Sequence[int], border: int) -> tuple[int, ...]:
    """Reflect padding (left, right, top, bottom) in pixels: at least `border`, rounded up to a fast FFT length.

    Args:
        size: (H, W) of the image.
        border: least padding of each side; at most half of the image is used. 0: no padding.
    """
    pads: list[int] = []
    for length in reversed(size):
        wanted = 2 * min(border, length // 2)       # reflection cannot pad by more pixels than the image has
        total = fast_length(length + wanted) - length if border else 0
        pads += [total // 2, total - total // 2]
    return tuple(pads)


def inside(pads: Sequence[int], size: Sequence[int]) -> tuple:
    """Index that removes the padding: `x[inside(pads, size)]` has the size (H, W) of before."""
    left, _, top, _ = pads
    return ..., slice(top, top + size[0]), slice(left, left + size[1])


def share_convolutions(stages: nn.ModuleList) -> None:
    """Let all stages use the weights of the first stage's convolutions and linear layers.

    BatchNorm and LayerNorm layers are not shared.
    """
    for stage in stages[1:]:
        for first, other in zip(stages[0].modules(), stage.modules()):
            if isinstance(first, (nn.Conv2d, nn.Linear)):
                for name, parameter in first.named_parameters(recurse=False):
                    other.register_parameter(name, parameter)


class TransformerBlock(nn.Module):
    """Replaces the FDFM in the ablation "FDFM => Trans. block" (Table 3, case 6). (B, C, H, W) -> (B, C, H, W)

    The paper does not describe its block, so the design is ours: pre-norm attention with 4 heads, then an MLP of twice
    the width. Keys and values are pooled to 16 x 16 tokens, so that the block runs at any image size.
    """

    KEYS = 16       # tokens along each side

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, f_f: Tensor) -> Tensor:
        x = f_f.flatten(2).mT                                           # (B, HW, C)
        x = x + self._attention(self.norm_attention(x), f_f.shape[-2:])
        x = x + self.mlp(self.norm_mlp(x))
        return x.mT.unflatten(2, f_f.shape[-2:])

    def _attention(self, x: Tensor, size: Sequence[int]) -> Tensor:
        places = F.adaptive_avg_pool2d(x.mT.unflatten(2, size), self.KEYS).flatten(2).mT        # (B, 256, C)
        key, value = self.key_value(places).chunk(2, 2)
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), key, value))
        attended = F.scaled_dot_product_attention(query, key, value)    # (B, heads, HW, C / heads)
        return self.project(attended.transpose(1, 2).flatten(2))


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm that follows a convolution into it, in place. The eval result is the same up to rounding.

    A convolution that iterations share becomes one convolution for each iteration.
    """
    for parent in module.modules():
        if isinstance(parent, nn.Sequential) and len(parent) > 1:
            conv, norm = parent[0], parent[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNorm):
                parent[0], parent[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def twin(module: Module) -> Module:
    """A copy of a module with the same weights, buffers, hooks and stored values, but with modes and options of its own."""
    double = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:      # such as a `forward` that replaces the first one
            vars(double)[name] = MethodType(value.__func__, double)
    double._modules = {name: child and twin(child) for name, child in module._modules.items()}
    return double


def batch_norms(*modules: nn.Module) -> list[_BatchNorm]:
    """All BatchNorm layers of the networks, including SyncBatchNorm."""
    return [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]


class ExactStatistics:
    """Computes the running statistics of BatchNorm layers from many batches, in place of an exponential average.

    For each batch, run a forward pass in training mode, then call `add`. At the end call `store`, or `cancel` to restore
    the former statistics. The total variance is the mean of the batch variances plus the variance of the batch means.

    Args:
        modules: networks. The running statistics of their BatchNorm layers are replaced.
    """

    def __init__(self, *modules: nn.Module):
        self.norms = batch_norms(*modules)
        self.sums = [torch.zeros(2, norm.num_features, dtype=torch.float64, device=norm.weight.device)
                     for norm in self.norms]
        self.count = 0
        self.momentum = [norm.momentum for norm in self.norms]
        self.former = [{name: value.clone() for name, value in norm.named_buffers()} for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 1.0         # the running statistics then equal those of the last batch

    def add(self, images: int) -> None:
        """Add the statistics of the last batch, with the weight `images`. 0 leaves the batch out."""
        self.count += images
        for norm, total in zip(self.norms, self.sums):
            assert norm.running_mean is not None and norm.running_var is not None
            mean, variance = norm.running_mean.double(), norm.running_var.double()
            total += images * torch.stack([mean, variance + mean * mean])

    def store(self, over_processes: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Write the statistics into the layers. `over_processes` sums a tensor over all processes.

        Raises ValueError if no image was added. The layers are then as they were before.
        """
        count = over_processes(torch.tensor(float(self.count), dtype=torch.float64, device=self.sums[0].device))
        self.cancel()       # restores also the number of training batches, which the layers have counted on
        if not count:
            raise ValueError("no statistics to store: `add` was not called, or only with 0 images")
        for norm, total in zip(self.norms, self.sums):
            mean, square = over_processes(total) / count
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(square - mean * mean)

    def cancel(self) -> None:
        """Restore the layers as they were before the first batch."""
        for norm, former, momentum in zip(self.norms, self.former, self.momentum):
            for name, value in norm.named_buffers():
                value.copy_(former[name])
            norm.momentum = momentum
