"""How the layers of RPFNet are computed: normalisation, global pools, Fourier transforms as channels.

net.py is the network as the paper prints it. Here stands what PyTorch does not have, or does too slowly.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm, as the paper prints it, with a second way to use it.

    In eval mode the running statistics of training are used, as in any BatchNorm. `image_statistics` takes those of
    each image instead. The published pictures were made that way: their network was saved and run in train mode.
    """

    image_statistics = False

    def forward(self, x: Tensor) -> Tensor:
        if self.image_statistics and not self.training:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return super().forward(x)


class ImagePools(nn.Module):
    """Average and maximum over the image, each (B, C, 1, 1). A module, so that video.Steady finds all of a network."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)


def channel_pools(x: Tensor) -> Tensor:
    """Average and maximum over the channels, (B, C, H, W) -> (B, 2, H, W)."""
    if x.requires_grad or x.device.type != "cpu":
        return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    # Inference on a CPU: its reductions over the channels of a channels_last tensor are slow (docs/speed.md).
    average = F.conv2d(x, x.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1]))
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2        # of an odd number, both halves hold the middle channel
        x = torch.maximum(x[:, :half], x[:, -half:])
    return torch.cat([average, x], 1)


def as_nchw(x: Tensor) -> Tensor:
    """x with contiguous planes. From channels_last it is a transposition, which is faster than PyTorch's copy."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous()
    return x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).contiguous().view(x.shape)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def rfft2_as_channels(x: Tensor) -> Tensor:
    """Real and imaginary parts of the 2-D spectrum, (B, C, H, W) -> (B, 2C, H, W/2+1); orthonormal.

    float32 or float64: there is no FFT of bfloat16.
    """
    if torch.onnx.is_in_onnx_export():
        return _rfft2_as_products(x)
    # Plane by plane: the transform of a channels_last tensor is slower (docs/speed.md).
    spectrum = torch.fft.rfft2(as_nchw(x), norm="ortho")
    return torch.cat([spectrum.real, spectrum.imag], 1)


def irfft2_of_channels(parts: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `rfft2_as_channels`: (B, 2C, H, W/2+1) -> (B, C, H, W)."""
    if torch.onnx.is_in_onnx_export():
        return _irfft2_as_products(parts, size)
    # s: without it an odd width would come back one pixel short.
    return torch.fft.irfft2(torch.complex(*parts.chunk(2, 1)), s=size, norm="ortho")


# In ONNX the same transforms are matrix products. Its runtimes refuse the inverse of a half spectrum, and their DFT of
# a whole one is slow (docs/export.md).


def _rfft2_as_products(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    spectrum = _dft(x.mT.unsqueeze(-3), width, width // 2 + 1, -1).mT           # (B, C, 2, H, W/2+1)
    return _dft(spectrum, height, height, -1).transpose(1, 2).flatten(1, 2)      # (B, 2C, H, W/2+1)


def _irfft2_as_products(parts: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    columns = _dft(parts.unflatten(1, (2, -1)).transpose(1, 2), height, height, 1).mT       # (B, C, 2, W/2+1, H)
    frequency = torch.arange(columns.shape[-2], device=parts.device)[:, None]
    twice = 1 + ((frequency > 0) & (2 * frequency < width)).to(parts)      # those between stand for two
    return _dft(columns * twice, width, width, 1, parts=1).squeeze(-3).mT


def _dft(x: Tensor, length: int, outputs: int, sign: int, parts: int = 2) -> Tensor:
    """Discrete Fourier transform along the rows, orthonormal: sums over j of x_j exp(sign 2 pi i j k / length).

    Two short matrix products after Cooley and Tukey: j = step j1 + j2 and k = k1 + count k2, where count * step is the
    length. For a length that is prime or not known yet, the second is the whole transform.

    Args:
        x: real and imaginary parts, (..., 2, J, N), or real parts alone, (..., 1, J, N), with J <= length.
        outputs: how many k, from 0 on.
        parts: 2, or 1 for the real part of the result alone.
    Returns:
        (..., parts, outputs, N)
    """
    *batch, given, inputs, others = x.shape
    count = _divisor(length)
    step, columns = length // count if count > 1 else inputs, -(-outputs // count)
    library = torch if isinstance(length, torch.SymInt) else np     # NumPy's results are constants of the graph
    j2, k1, k2 = (library.arange(n, dtype=library.float64) for n in (step, count, columns))
    # The product with exp(i a) is a 2 x 2 matrix of real numbers, the cosines of a plus these.
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
        matrix = matrix.astype(np.float32)      # a constant of half the size
    return torch.as_tensor(matrix).to(x)


def _divisor(length: int) -> int:
    """The largest divisor up to the square root, or 1 where torch.export leaves the length open."""
    if isinstance(length, torch.SymInt):
        return 1
    return max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)


# Numbers without a prime factor above 5, far beyond the side of any image.
FAST_LENGTHS = sorted(n for i in range(21) for j in range(13) for k in range(9) if (n := 2**i * 3**j * 5**k) <= 2**20)


def fast_length(length: int) -> int:
    """The smallest number from `length` on without a prime factor above 5; FFTs of such a length are fast."""
    if not isinstance(length, torch.SymInt):
        return next(n for n in FAST_LENGTHS if n >= length)
    # torch.export leaves the length open, so the search has to be part of the graph.
    numbers = torch.tensor(FAST_LENGTHS)
    found = numbers[(numbers < length).sum()].item()
    torch._check(found >= length)
    torch._check(found <= 2 * length)
    return found


def mirror_pads(size: Sequence[int], border: int) -> tuple[int, ...]:
    """Pixels to mirror at the left, right, top and bottom: `border` or more, up to a length that the FFT likes."""
    pads: list[int] = []
    for length in reversed(size):
        wanted = 2 * min(border, length // 2)       # a mirror shows no more than there is
        total = fast_length(length + wanted) - length if border else 0
        pads += [total // 2, total - total // 2]
    return tuple(pads)


def inside(pads: Sequence[int], size: Sequence[int]) -> tuple:
    """Index of the part that padding did not add."""
    left, _, top, _ = pads
    return ..., slice(top, top + size[0]), slice(left, left + size[1])


def share_convolutions(stages: nn.ModuleList) -> None:
    """Give all stages the convolutions (and linear layers) of the first; BatchNorm layers stay their own."""
    for stage in stages[1:]:
        for first, other in zip(stages[0].modules(), stage.modules()):
            if isinstance(first, (nn.Conv2d, nn.Linear)):
                for name, parameter in first.named_parameters(recurse=False):
                    other.register_parameter(name, parameter)


class TransformerBlock(nn.Module):
    """What takes the place of the FDFM in the ablation "FDFM => Trans. block" (Table 3, case 6).

    The paper does not describe its block; this one is ours: pre-norm attention with 4 heads, whose keys and values
    are pooled to 16 x 16 places so that any size runs, then an MLP of twice the width.
    """

    KEYS = 16       # places along each side

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
    """Fold each BatchNorm into the convolution before it, in place; in eval mode the result is the same to rounding.

    Convolutions that iterations share become one for each iteration.
    """
    for parent in module.modules():
        if isinstance(parent, nn.Sequential) and len(parent) > 1 and isinstance(parent[1], BatchNorm):
            conv, norm = parent[0], parent[1]
            assert isinstance(conv, nn.Conv2d)
            parent[0], parent[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def batch_norms(*modules: nn.Module) -> list[_BatchNorm]:
    """All BatchNorm layers of networks, those that are synchronised over processes included."""
    return [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]


class ExactStatistics:
    """Running statistics of BatchNorm layers over many batches together, in place of an exponential average.

    Use: for each batch, a forward pass in training mode, then `add`; at the end, `store`. The variance of all is the
    mean of the batches' variances plus the variance of their means.

    Args:
        modules: networks; the statistics of their BatchNorm layers are replaced.
    """

    def __init__(self, *modules: nn.Module):
        self.norms = batch_norms(*modules)
        self.sums = [torch.zeros(2, norm.num_features, dtype=torch.float64, device=norm.weight.device)
                     for norm in self.norms]
        self.count = 0
        self.momentum = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 1.0         # the running statistics are then those of the last batch

    def add(self, images: int) -> None:
        """Count the batch that was just passed; `images` is its weight, 0 leaves it out."""
        self.count += images
        for norm, total in zip(self.norms, self.sums):
            assert norm.running_mean is not None and norm.running_var is not None
            mean, variance = norm.running_mean.double(), norm.running_var.double()
            total += images * torch.stack([mean, variance + mean * mean])

    def store(self, over_processes: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Write the statistics; `over_processes` adds a tensor up over the processes of a distributed run."""
        count = over_processes(torch.tensor(float(self.count), dtype=torch.float64, device=self.sums[0].device))
        for norm, total, momentum in zip(self.norms, self.sums, self.momentum):
            mean, square = over_processes(total) / count
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(square - mean * mean)
            norm.momentum = momentum
