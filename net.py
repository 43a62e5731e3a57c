"""RPFNet: Residual Prior-driven Frequency-aware Network (Guan et al., ACM MM 2025, arXiv 2507.06735).

Read from top to bottom: blocks, modules (CPM, RPM, FDFM), one stage, the two networks. Symbols follow
the paper: F_F are the fusion features, F_R the residual features, M = IR - VIS_Y the residual prior.

    from net import RPFNet
    fused = RPFNet.from_pretrained().fuse(ir, vis)      # numpy uint8 in, numpy uint8 out
"""
from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor, distributed, nn
from torch.nn import functional as F

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "rpfnet.pth"
MIN_SIZE = 16       # pixels; below, the dilated convolutions see little but padding
MIN_TILE = 64       # pixels
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3   # of glibc's malloc.h
LARGEST_KEPT = 2**27        # bytes; above the features of 768 x 1024 in float32, or of twice that in bfloat16
CPU_GROUP, GPU_GROUP = 2**21, 2**25     # values that FrequencyCB transforms at a time: 8 MB stay in a CPU's cache

# ---------------------------------------------------------------------------------------------
# Blocks



class InstanceNorm(nn.InstanceNorm2d):
    """Affine instance normalisation that keeps the memory layout.

    PyTorch's own reshapes (B, C, H, W) to (1, B C, H, W), which copies channels_last images twice.
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    @property
    def per_image(self) -> bool:
        """Whether, as things are, an image's statistics are its own."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not (x.requires_grad and is_channels_last(x)):
            # One group a channel is the same, and several times faster; but not backwards in channels_last.
            return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        if len(x) == 1:
            return self._as_batch(x)
        if x.requires_grad or not is_channels_last(x):
            return super().forward(x)
        return torch.cat([self._as_batch(image) for image in x.split(1)])

    def _as_batch(self, x: Tensor) -> Tensor:
        """Normalised by the statistics of all of x."""
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class SumOverProcesses(torch.autograd.Function):
    """Sum over the processes of torchrun, and so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    backward = forward


class PooledNorm(InstanceNorm):
    """Statistics of the whole batch in training, of the one image in eval mode.

    A network that is normalised crop by crop never sees how much contrast a crop has, and learns to give
    every image that of a small crop. Over a batch, crops differ in contrast and brightness as the
    parts of an image do. In use each image has its own statistics, as the published pictures have.
    """

    takes_part = True       # of several processes: whether this one's images count, or only stand in (see train.py)

    @property
    def per_image(self) -> bool:
        return not self.training

    def forward(self, x: Tensor) -> Tensor:
        if self.per_image:
            return super().forward(x)
        return self._over_all_processes(x) if distributed.is_initialized() else self._as_batch(x)

    def _over_all_processes(self, x: Tensor) -> Tensor:
        """The batch is that of all processes together (torchrun), so that their number changes nothing."""
        axes, places = (0, 2, 3), (slice(None), None, None)
        values, part = x.float(), float(self.takes_part)
        total = SumOverProcesses.apply
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums, count = total(part * torch.cat([values.sum(axes), count])).split((values.shape[1], 1))
        centred = values - (sums / count)[places]
        variance = total(part * centred.square().sum(axes)) / count
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[places] + self.bias[places]).to(x.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    # In use, both take the statistics of the one image, which the published pictures rely on.
    "pooled": PooledNorm,
    "instance": InstanceNorm,
    # As printed in the paper. With one shared stage the running statistics mix three
    # distributions, and eval() is wrong; see `sharing` of RPFNet.
    "batch": nn.BatchNorm2d,
}


class CB(nn.Sequential):
    """Convolutional block: conv k x k (same size), normalisation, activation (paper, section 3.2).

    (B, inputs, H, W) -> (B, outputs, H, W)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, norm: str = "pooled",
                 activation: type[nn.Module] = nn.ReLU):
        # No bias: the normalisation would remove it.
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        # In place: the normalisation's backward pass needs its input, not its output.
        super().__init__(conv, NORMS[norm](outputs), nn.ReLU(inplace=True) if activation is nn.ReLU else activation())


class ChannelAttention(nn.Module):
    """CA of Eq. 3: weighs channels by their average and maximum over the image (as CBAM does)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        average, maximum = image_pools(x)                             # (B, C, 1, 1)
        return x * torch.sigmoid(self.mlp(average) + self.mlp(maximum))


class SpatialAttention(nn.Module):
    """SA of Eq. 3: weighs places by the average and maximum over the channels, 7 x 7."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat(channel_pools(x), 1)                       # (B, 2, H, W)
        # Two channels of planes make the slowest convolution of all, backwards.
        return x * torch.sigmoid(self.conv(pooled.contiguous(memory_format=torch.channels_last)))


def image_pools(x: Tensor) -> tuple[Tensor, Tensor]:
    """Average and maximum over the image, each (B, C, 1, 1)."""
    if x.device.type == "cpu":      # reductions of channels_last bfloat16 are scalar code there, pooling is not
        return F.avg_pool2d(x, x.shape[2:]), F.adaptive_max_pool2d(x, 1)
    return x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)


def channel_pools(x: Tensor) -> tuple[Tensor, Tensor]:
    """Average and maximum over the channels, each (B, 1, H, W)."""
    if x.device.type != "cpu" or x.requires_grad:
        return x.mean(1, keepdim=True), x.amax(1, keepdim=True)
    average = F.conv2d(x, x.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1]))
    while x.shape[1] > 1:           # halves that overlap where their number is odd
        half = (x.shape[1] + 1) // 2
        x = torch.maximum(x[:, :half], x[:, -half:])
    return average, x


# ---------------------------------------------------------------------------------------------
# Modules


class CPM(nn.Module):
    """Cross-Promotion Module: each branch refines the other (Eq. 1 and 2)."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.to_residual = CB(channels, channels, norm=norm)
        self.to_fusion = CB(channels, channels, norm=norm, activation=nn.Sigmoid)

    def forward(self, f_f: Tensor, f_r: Tensor) -> tuple[Tensor, Tensor]:
        residual, gate = self.to_residual(f_f), self.to_fusion(f_r)
        if torch.is_grad_enabled():
            return torch.addcmul(f_f, gate, f_f), residual + f_r        # Eq. 2, of the unrefined F_R, and Eq. 1
        # The same in place: large tensors that come and go leave holes in the memory.
        return torch.addcmul(f_f, gate, f_f, out=gate), residual.add_(f_r)


class RPM(nn.Module):
    """Residual Prior Module: attention, then dilated convolutions with rates 1, 3, 5, summed (Eq. 3)."""

    def __init__(self, channels: int):
        super().__init__()
        self.ca = ChannelAttention(channels)
        self.sa = SpatialAttention()
        self.dilated = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in (1, 3, 5))

    def forward(self, f_r: Tensor) -> Tensor:
        attended = self.sa(self.ca(f_r))
        near, middle, far = self.dilated
        return near(attended).add_(middle(attended)).add_(far(attended))


def to_parts(x: Tensor) -> Tensor:
    """rfft2 of (B, C, H, W) as real and imaginary parts, (B, 2C, H, W/2+1); ortho."""
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.cat([spectrum.real, spectrum.imag], 1)


def from_parts(parts: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_parts`: (B, 2C, H, W/2+1) -> (B, C, H, W)."""
    # s: without it an odd width would come back one pixel short.
    return torch.fft.irfft2(torch.complex(*parts.chunk(2, 1)), s=size, norm="ortho")


def column_weights(like: Tensor, width: int, inner: float) -> Tensor:
    """`inner` for the columns of a half spectrum that stand for two of the full one, 1 for those that stand for one."""
    weights = like.new_full((width // 2 + 1,), inner)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    return weights


class ToParts(torch.autograd.Function):
    """`to_parts` with a gradient of half a spectrum; PyTorch's transforms the full, zero-filled one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.size = x.shape[-2:]
        return to_parts(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return from_parts(gradient * column_weights(gradient, ctx.size[1], 0.5), ctx.size)


class FromParts(torch.autograd.Function):
    """`from_parts`, its gradient likewise."""

    @staticmethod
    def forward(ctx, parts: Tensor, size: tuple[int, int]) -> Tensor:
        return from_parts(parts, size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return to_parts(gradient).mul_(column_weights(gradient, gradient.shape[-1], 2)), None


class FrequencyCB(nn.Module):
    """FFT^-1(CB_1x1(FFT(x))): a 1 x 1 convolution of the spectrum sees the whole image (Eq. 4).

    The transforms are in float32, under autocast too, and in training all of it is. In use the spectrum waits
    for its product in the precision of x: rounding it adds no more noise than rounding x (Parseval).
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.block = CB(2 * channels, 2 * channels, kernel=1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # Plane by plane: the transform of a channels_last image is several times slower.
            norm = self.block[1]
            grouped = not torch.is_grad_enabled() and isinstance(norm, InstanceNorm) and norm.per_image
            planes = as_planes(x)
            if grouped:
                image = self._in_groups(planes, torch.empty_like(x) if planes is x else planes)
            else:
                image = self._at_once(planes)
        return image.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else image

    def _at_once(self, planes: Tensor) -> Tensor:
        conv, norm, activation = self.block
        parts = ToParts.apply(planes.float())
        mixed = activation(norm(mix(conv.weight.flatten(1), parts)))
        return FromParts.apply(mixed, planes.shape[-2:]).to(planes.dtype)

    def _in_groups(self, planes: Tensor, image: Tensor) -> Tensor:
        """The same in a third of the memory, some channels at a time: only the product needs all of them.

        Fills `image`, which may be `planes` itself: all of it is read before.
        """
        batch, channels, height, width = planes.shape
        size = max(1, (CPU_GROUP if planes.device.type == "cpu" else GPU_GROUP) // (batch * height * width))
        groups = [slice(start, start + size) for start in range(0, channels, size)]
        parts = planes.new_empty((batch, 2, channels, height, width // 2 + 1))
        for group in groups:
            parts[:, :, group] = to_parts(planes[:, group].float()).unflatten(1, (2, -1))
        conv, norm, activation = self.block
        # Of the rows, the first half makes real parts and the second half imaginary parts.
        weight, scale, shift = (x.unflatten(0, (2, channels))
                                for x in (conv.weight.flatten(1).to(parts.dtype), norm.weight, norm.bias))
        for group in groups:
            mixed = mix(weight[:, group].flatten(0, 1), parts.flatten(1, 2))
            mixed = normalised_planes(mixed, scale[:, group].flatten(), shift[:, group].flatten(), norm.eps)
            image[:, group] = from_parts(activation(mixed).float(), (height, width))
        return image


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """A 1 x 1 convolution of planes as a matrix product: on CPUs the convolution copies its input first."""
    return torch.bmm(weight.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


def normalised_planes(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Instance normalisation of x in (B, C, H, W) order; `scale` and `shift`, (C,), in float32."""
    if x.device.type == "cpu":
        return F.group_norm(x, x.shape[1], scale.to(x.dtype), shift.to(x.dtype), eps)
    # Not group_norm, whose statistics older versions of PyTorch round to bfloat16 on GPUs.
    return F.instance_norm(x, weight=scale, bias=shift, eps=eps)


def as_planes(x: Tensor) -> Tensor:
    """x in (B, C, H, W) order. Spelled as a transposition, which is twice as fast as PyTorch's change of layout."""
    if not is_channels_last(x):
        return x
    return x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).contiguous().view(x.shape)


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class FDFM(nn.Module):
    """Frequency-Domain Fusion Module: a spatial branch beside a global, spectral one (Eq. 4)."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.spatial = CB(channels, channels, norm=norm)
        self.refine = CB(channels, channels, norm=norm)
        self.frequency = FrequencyCB(channels, norm)

    def forward(self, f_f: Tensor) -> Tensor:
        frequency = self.frequency(self.refine(f_f))
        return frequency.add_(self.spatial(f_f))


class Features(NamedTuple):
    """What one stage hands on, each (B, C, H, W)."""
    fusion: Tensor      # F_F
    residual: Tensor    # F_R


class Stage(nn.Module):
    """The modules of one iteration of the paper's Figure 2: CPM, then FDFM and RPM side by side (see RPFNet)."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.cpm = CPM(channels, norm)
        self.fdfm = FDFM(channels, norm)
        self.rpm = RPM(channels)


class Head(nn.Module):
    """Features to one image in [0, 1]: two CBs, a last convolution and a sigmoid.

    The last step is in float32 under autocast too: bfloat16 has only 128 levels in [0.5, 1].
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.blocks = nn.Sequential(CB(channels, channels, norm=norm), CB(channels, channels // 2, norm=norm))
        self.last = nn.Conv2d(channels // 2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        with torch.autocast(x.device.type, enabled=False):
            return torch.sigmoid(self.last(x.float()))


class AuxiliaryDecoder(Head):
    """Decodes the residual features F_R^n to M', on which L_SS acts; used in training only (Eq. 5-7).

    (B, C, H, W) -> (B, 1, H, W) in [0, 1]. In float32 throughout: in bfloat16 its sigmoid
    saturates, M' goes flat and L_SS has no gradient any more.
    """

    def __init__(self, channels: int = 32, norm: str = "pooled"):
        super().__init__(channels, norm)

    def forward(self, f_r: Tensor) -> Tensor:
        with torch.autocast(f_r.device.type, enabled=False):
            return super().forward(f_r.float())


# ---------------------------------------------------------------------------------------------
# The network


class RPFNet(nn.Module):
    """The fusion network (paper, section 3.2 and Figure 2).

    Args:
        channels: width of all features.
        stages: the number n of iterations.
        norm: "pooled" (default), "instance" or "batch"; see NORMS.
        sharing: what the iterations have in common: "all" (default: one stage, unrolled),
            "convolutions" (each iteration has normalisation of its own) or "none".
        border: in eval mode the sources are mirrored by at least so many pixels on each side (up to a
            length that the FFT likes) and the result is cropped again, so that what zero padding and the
            FFT's wrap-around do to a frame falls outside. 0: off.
    """

    def __init__(self, channels: int = 32, stages: int = 3, norm: str = "pooled", sharing: str = "all",
                 border: int = 8):
        super().__init__()
        for name, value, known in (("norm", norm, tuple(NORMS)), ("sharing", sharing, ("all", "convolutions", "none"))):
            if value not in known:
                raise ValueError(f"{name}={value!r}; choose from {', '.join(known)}")
        if stages < 1 or channels < 4 or border < 0:
            raise ValueError(f"stages={stages}, channels={channels}, border={border}: at least 1, 4 and 0 are needed")
        self.config = {"channels": channels, "stages": stages, "norm": norm, "sharing": sharing, "border": border}
        self.stem_f = CB(2, channels, norm=norm)
        self.stem_r = CB(1, channels, norm=norm)
        self.stages = nn.ModuleList(Stage(channels, norm) for _ in range(1 if sharing == "all" else stages))
        if sharing == "convolutions":
            _tie_convolutions(self.stages)
        self.head = Head(channels, norm)
        self.optimized = False

    def optimize(self, compiled: bool = False) -> RPFNet:
        """Make inference faster where the picture stays the same: bfloat16, except for the FFTs and the last step.

        Over 50 dB from the float32 picture on real pairs (see tests). Pays on GPUs, and on CPUs
        with bfloat16 instructions (AVX-512 BF16, AMX); older ones are slower with it.

        Args:
            compiled: also torch.compile, with CUDA graphs: for many images of one size on a GPU. The first of each
                size takes a minute, and after eight sizes PyTorch stops compiling. Gains nothing on CPUs. What
                the network itself returns is then overwritten by its next call: clone what you keep.
        Returns:
            self.
        """
        self.optimized = True
        if compiled:
            self.compile(mode="reduce-overhead", dynamic=False)
        return self.to(memory_format=torch.channels_last).eval()

    def forward(self, ir: Tensor, vis_y: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, list[Features]]:
        """Fuse a batch.

        Args:
            ir, vis_y: (B, 1, H, W) in [0, 1], H and W at least 16, odd sizes too.
            return_features: also return the features before the first and after each stage
                (n + 1 entries; `features[-1].residual` is what the auxiliary decoder reads).
        Returns:
            The fused luminance, (B, 1, H, W) in [0, 1], float32.
        """
        _check_batch(ir, vis_y)
        if self.optimized:
            with torch.autocast(ir.device.type, torch.bfloat16):
                return self._fuse(ir, vis_y, return_features)
        return self._fuse(ir, vis_y, return_features)

    def _fuse(self, ir: Tensor, vis_y: Tensor, return_features: bool) -> Tensor | tuple[Tensor, list[Features]]:
        pads = _mirror_pads(ir.shape[-2:], 0 if self.training else self.config["border"])
        sources = F.pad(torch.cat([ir, vis_y], 1), pads, mode="reflect")                  # (B, 2, H, W)
        prior = sources[:, :1] - sources[:, 1:]                                           # M
        features = [Features(self.stem_f(sources), self.stem_r(prior))]
        for iteration in range(self.config["stages"]):
            stage = self.stages[iteration % len(self.stages)]
            refined_f, refined_r = stage.cpm(*features[-1])
            if not return_features:
                features.clear()        # a large image should not hold what nobody needs any more
            fusion = stage.fdfm(refined_f)
            del refined_f
            features.append(Features(fusion, stage.rpm(refined_r)))
        left, _, top, _ = pads
        place = (..., slice(top, top + ir.shape[-2]), slice(left, left + ir.shape[-1]))
        fused = self.head(features[-1].fusion + features[-1].residual)[place]
        return (fused, [Features(f.fusion[place], f.residual[place]) for f in features]) if return_features else fused

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, device: str | torch.device = "cpu") -> RPFNet:
        """The trained network in eval mode.

        Args:
            path: weights (`.pth`, with the recipe beside it as `.json`) or a training checkpoint of
                train.py; by default the shipped checkpoint.
            device: where to put it.
        Raises:
            FileNotFoundError, ValueError: no such file, or not the weights of this network.
        """
        path = Path(path or CHECKPOINT)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint; train one with `python train.py`, or give its path")
        check_device(device)
        state, config = _read_checkpoint(path)
        try:
            model = cls(**config)
            model.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: not the weights of RPFNet({config}): {error}") from None
        # Layout changes no value; a single image is convolved faster so, on CPUs and GPUs.
        return model.to(device, memory_format=torch.channels_last).eval()

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False, tile: int = 0) -> np.ndarray:
        """Fuse one pair of numpy images, on the device of the network; see `fuse_pair`."""
        return fuse_pair(self, ir, vis, studio_range, tile)


def _tie_convolutions(stages: nn.ModuleList) -> None:
    """Give all stages the convolutions of the first; normalisation layers stay their own."""
    for stage in stages[1:]:
        for first, other in zip(stages[0].modules(), stage.modules()):
            if isinstance(first, nn.Conv2d):
                other.weight, other.bias = first.weight, first.bias


@torch.compiler.assume_constant_result      # torch.compile cannot look into scipy
def _mirror_pads(size: tuple[int, int], border: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, as F.pad takes them."""
    pads = []
    for length in reversed(size):
        wanted = 2 * min(border, length // 2)       # a mirror shows no more than there is
        total = next_fast_len(length + wanted) - length if border else 0
        pads += [total // 2, total - total // 2]
    return tuple(pads)


def _check_batch(ir: Tensor, vis_y: Tensor) -> None:
    if ir.shape != vis_y.shape or ir.dim() != 4 or ir.shape[1] != 1 or min(ir.shape[2:]) < MIN_SIZE:
        raise ValueError(f"expected ir and vis_y of one shape (B, 1, H, W) with H, W >= {MIN_SIZE}, "
                         f"got {tuple(ir.shape)} and {tuple(vis_y.shape)}")
    if not ir.is_floating_point() or not vis_y.is_floating_point():
        raise ValueError(f"expected floats in [0, 1], got {ir.dtype} and {vis_y.dtype}; divide 8-bit images by 255")


def _check_arrays(ir: np.ndarray, vis: np.ndarray) -> None:
    for name, image in (("ir", ir), ("vis", vis)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise TypeError(f"{name}: expected a numpy array of uint8, got {getattr(image, 'dtype', type(image).__name__)}")
    if ir.ndim != 2:
        raise ValueError(f"ir: expected (H, W), got {ir.shape}")
    if vis.ndim not in (2, 3) or vis.ndim == 3 and vis.shape[2] != 3:
        raise ValueError(f"vis: expected (H, W) or (H, W, 3), got {vis.shape}")
    if ir.shape != vis.shape[:2]:
        raise ValueError(f"ir is {ir.shape} and vis is {vis.shape[:2]}; they must be aligned, pixel by pixel")
    if min(ir.shape) < MIN_SIZE:
        raise ValueError(f"images of {ir.shape} are too small; H and W must be at least {MIN_SIZE}")


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """State dict and constructor arguments of a shipped (`.pth` + `.json`) or a training checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:     # torch raises many types; each would hide the file's name
        raise ValueError(f"{path}: cannot be read as weights ({first_line(error)})") from None
    if isinstance(state, dict) and {"model", "config"} <= state.keys():
        return state["model"], state["config"]
    recipe = path.with_suffix(".json")
    try:
        return state, json.loads(recipe.read_text())["config"]
    except (OSError, ValueError, KeyError):
        # Not guessed: with shared stages the weights do not tell their number.
        raise ValueError(f"{path}: the network's arguments are missing; put the {recipe.name} that was written "
                         "with it beside it") from None


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensor; given back and taken again, each page costs a fault.

    Saves an eighth (inference) to a quarter (training) of the time on CPUs. Larger blocks are still given
    back, because they leave larger holes. It holds for the whole process, so programs call it, not imports.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):        # musl has none
        return
    # Before 2.35, glibc refuses more than 32 MB; left at its 128 KB, with trimming set, it would give back almost all.
    if libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check_device(device: str | torch.device) -> None:
    """Raises ValueError, in one line, for a device that PyTorch cannot use here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------------------------------------
# Images in, images out


def fuse_pair(model: nn.Module, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False, tile: int = 0) -> np.ndarray:
    """Fuse one pair of numpy images in eval mode.

    Args:
        model: RPFNet, or any network called as model(ir, vis_y) with (B, 1, H, W) tensors in [0, 1].
        ir: uint8 (H, W).
        vis: uint8 (H, W) gray or (H, W, 3) RGB.
        studio_range: stretch the output as the paper's published pictures do; see `to_image`.
        tile: side of the tiles, for images that do not fit into memory; see `fuse_tiles`. 0: off.
    Returns:
        uint8, shaped like `vis`; the chrominance is that of `vis`.
    Raises:
        TypeError, ValueError: that name what was given.
    """
    return in_colour_of(vis, fuse_luminance(model, [prepare(ir, vis)], tile)[0], studio_range)


# Its three steps, so that test.py can read, fuse and write several pairs at a time.


def prepare(ir: np.ndarray, vis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees of a pair, see `fuse_pair`: ir as it is, and luminance (H, W), float32 in [0, 1]."""
    _check_arrays(ir, vis)
    return ir, split_colour(vis)[0]


@torch.inference_mode()
def fuse_luminance(model: nn.Module, pairs: Sequence[tuple[np.ndarray, np.ndarray]], tile: int = 0) -> np.ndarray:
    """Fuse B pairs of one size, each from `prepare`, in one pass: small images use a GPU better so.

    Returns:
        (B, H, W), float32 in [0, 1].
    """
    device = next(model.parameters()).device
    ir, vis_y = (torch.from_numpy(np.stack(images)[:, None]).to(device) for images in zip(*pairs))
    training = model.training
    model.eval()
    try:
        ir = ir.float() / 255
        fused = fuse_tiles(model, ir, vis_y, tile) if tile else model(ir, vis_y)
        return fused[:, 0].float().cpu().numpy()
    finally:
        model.train(training)


def in_colour_of(vis: np.ndarray, luminance: np.ndarray, studio_range: bool = False) -> np.ndarray:
    """Fused luminance (H, W) in [0, 1] -> uint8, shaped like `vis` and with its chrominance."""
    # Split once more than in `prepare`: its chrominance, kept until now, would take 8 bytes a pixel of each waiting pair.
    return to_image(luminance, split_colour(vis)[1], studio_range)


def fuse_tiles(model: nn.Module, ir: Tensor, vis_y: Tensor, tile: int) -> Tensor:
    """Fuse tile by tile: the memory of one tile, and another picture.

    Spectrum, attention and normalisation of a tile see that tile alone, so each gets a contrast of its
    own. Tiles overlap by a quarter and are blended, which hides seams, not that difference.

    Args:
        ir, vis_y: (B, 1, H, W) in [0, 1].
        tile: side in pixels, at least 64; an image no larger is fused as a whole.
    """
    if tile < MIN_TILE:
        raise ValueError(f"tile={tile}; at least {MIN_TILE} pixels, better 1024 or more")
    height, width = ir.shape[2:]
    total, weights = torch.zeros_like(ir), torch.zeros_like(ir)
    for top in _tile_starts(height, tile):
        for left in _tile_starts(width, tile):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            part = model(ir[place], vis_y[place])
            window = torch.outer(*(_ramp(length, tile // 4) for length in part.shape[2:])).to(part)
            total[place] += part * window
            weights[place] += window
    return total / weights


def _tile_starts(length: int, tile: int) -> list[int]:
    """Evenly spread starts of tiles that overlap by a quarter or more."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - tile // 4)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """1 in the middle, falling linearly towards both ends, never 0."""
    place = torch.arange(length)
    return (torch.minimum(place, length - 1 - place) + 1).div(overlap + 1).clamp_max(1)


def split_colour(vis: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 gray or RGB -> luminance (H, W) float32 in [0, 1], and Cr, Cb (H, W, 2) or None for gray.

    Full-range BT.601 both ways (OpenCV's YCrCb), here and in `to_image`.
    """
    vis = np.float32(vis) / 255
    if vis.ndim == 2:
        return vis, None
    ycc = cv2.cvtColor(vis, cv2.COLOR_RGB2YCrCb)
    return np.ascontiguousarray(ycc[..., 0]), ycc[..., 1:]


def to_image(luminance: np.ndarray, chrominance: np.ndarray | None = None, studio_range: bool = False) -> np.ndarray:
    """Luminance (H, W) in [0, 1] and Cr, Cb (or None) -> uint8 (H, W) or (H, W, 3) RGB.

    studio_range converts full-range Y by the studio-range formula, 1.164 (Y - 16), as the paper's
    published pictures do: 16 % more contrast, with clipping. Off by default, because it is a mix-up.
    """
    if studio_range:
        luminance = (luminance - 16 / 255) * 1.164
    if chrominance is None:
        image = luminance
    elif studio_range:
        cr, cb = chrominance[..., 0] - 0.5, chrominance[..., 1] - 0.5
        image = np.stack([luminance + 1.596 * cr, luminance - 0.813 * cr - 0.392 * cb, luminance + 2.017 * cb], -1)
    else:
        image = cv2.cvtColor(np.dstack([luminance, chrominance]), cv2.COLOR_YCrCb2RGB)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
