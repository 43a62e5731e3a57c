"""RPFNet: Residual Prior-driven Frequency-aware Network (Guan et al., ACM MM 2025, arXiv 2507.06735).

Read from top to bottom: blocks, modules (CPM, RPM, FDFM), one stage, the two networks. Symbols follow
the paper: F_F are the fusion features, F_R the residual features, M = IR - VIS_Y the residual prior.

    from net import RPFNet
    fused = RPFNet.from_pretrained().fuse(ir, vis)      # numpy uint8 in, numpy uint8 out
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "rpfnet.pth"
MIN_SIZE = 16       # pixels; below, the dilated convolutions see little but padding

# ---------------------------------------------------------------------------------------------
# Blocks



class InstanceNorm(nn.InstanceNorm2d):
    """Affine instance normalisation that keeps a single image's memory layout.

    PyTorch's own reshapes (B, C, H, W) to (1, B C, H, W), which copies a channels_last image twice.
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    # Statistics of the one image, in training and in use: what the published pictures rely on.
    "instance": InstanceNorm,
    # As printed in the paper. With one shared stage the running statistics mix three
    # distributions, and eval() is wrong; see `sharing` of RPFNet.
    "batch": nn.BatchNorm2d,
}


class CB(nn.Sequential):
    """Convolutional block: conv k x k (same size), normalisation, activation (paper, section 3.2).

    (B, inputs, H, W) -> (B, outputs, H, W)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, norm: str = "instance",
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
        # One axis at a time: the maximum over both at once is slow in channels_last.
        average, maximum = x.mean((2, 3), keepdim=True), x.amax(2, keepdim=True).amax(3, keepdim=True)   # (B, C, 1, 1)
        return x * torch.sigmoid(self.mlp(average) + self.mlp(maximum))


class SpatialAttention(nn.Module):
    """SA of Eq. 3: weighs places by the average and maximum over the channels, 7 x 7."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)         # (B, 2, H, W)
        return x * torch.sigmoid(self.conv(pooled))


# ---------------------------------------------------------------------------------------------
# Modules


class CPM(nn.Module):
    """Cross-Promotion Module: each branch refines the other (Eq. 1 and 2)."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.to_residual = CB(channels, channels, norm=norm)
        self.to_fusion = CB(channels, channels, norm=norm, activation=nn.Sigmoid)

    def forward(self, f_f: Tensor, f_r: Tensor) -> tuple[Tensor, Tensor]:
        refined_r = self.to_residual(f_f) + f_r         # Eq. 1
        refined_f = self.to_fusion(f_r) * f_f + f_f     # Eq. 2, of the unrefined F_R
        return refined_f, refined_r


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
        return sum(conv(attended) for conv in self.dilated)


class FrequencyCB(nn.Module):
    """FFT^-1(CB_1x1(FFT(x))): a 1 x 1 convolution of the spectrum sees the whole image (Eq. 4).

    Always in float32, under autocast too: the zero frequency of an ortho FFT is sqrt(H W) times the
    mean, and 8 bits of mantissa there would show as noise everywhere.
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.block = CB(2 * channels, 2 * channels, kernel=1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # Plane by plane: the transform of a channels_last image is several times slower.
            planes = x.to(torch.float32, memory_format=torch.contiguous_format)
            spectrum = torch.fft.rfft2(planes, norm="ortho")                      # (B, C, H, W/2+1), complex
            parts = torch.cat([spectrum.real, spectrum.imag], 1)                  # (B, 2C, H, W/2+1)
            real, imaginary = self.block(parts).chunk(2, 1)
            # s: without it an odd width would come back one pixel short.
            return torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho")


def match_layout(x: Tensor, other: Tensor) -> Tensor:
    """x in the memory layout of `other`: a sum of two layouts walks through one of them in strides."""
    return x.contiguous(memory_format=torch.channels_last) if is_channels_last(other) else x


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
        spatial, frequency = self.spatial(f_f), self.frequency(self.refine(f_f))
        return spatial + match_layout(frequency, spatial)


class Features(NamedTuple):
    """What one stage hands on, each (B, C, H, W)."""
    fusion: Tensor      # F_F
    residual: Tensor    # F_R


class Stage(nn.Module):
    """One iteration of the paper's Figure 2: CPM, then FDFM and RPM side by side."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.cpm = CPM(channels, norm)
        self.fdfm = FDFM(channels, norm)
        self.rpm = RPM(channels)

    def forward(self, features: Features) -> Features:
        refined_f, refined_r = self.cpm(*features)
        return Features(self.fdfm(refined_f), self.rpm(refined_r))


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

    def __init__(self, channels: int = 32, norm: str = "instance"):
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
        norm: "instance" (default) or "batch"; see NORMS.
        sharing: what the iterations have in common: "all" (default: one stage, unrolled),
            "convolutions" (each iteration has normalisation of its own) or "none".
        border: in eval mode the sources are mirrored by at least so many pixels on each side (up to a
            length that the FFT likes) and the result is cropped again, so that what zero padding and the
            FFT's wrap-around do to a frame falls outside. 0: off.
    """

    def __init__(self, channels: int = 32, stages: int = 3, norm: str = "instance", sharing: str = "all",
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

    def optimize(self) -> RPFNet:
        """Make inference faster where the picture stays the same: bfloat16, except for the spectrum and the last step.

        Over 50 dB from the float32 picture on real pairs (see tests). Pays on GPUs, and on CPUs
        with bfloat16 instructions (AVX-512 BF16, AMX); older ones are slower with it. Returns self.
        """
        self.optimized = True
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
            features.append(stage(features[-1]))
            if not return_features:
                del features[0]     # a large image should not hold what nobody asked for
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

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False) -> np.ndarray:
        """Fuse one pair of numpy images, on the device of the network; see `fuse_pair`."""
        return fuse_pair(self, ir, vis, studio_range)


def _tie_convolutions(stages: nn.ModuleList) -> None:
    """Give all stages the convolutions of the first; normalisation layers stay their own."""
    for stage in stages[1:]:
        for first, other in zip(stages[0].modules(), stage.modules()):
            if isinstance(first, nn.Conv2d):
                other.weight, other.bias = first.weight, first.bias


def _mirror_pads(size: tuple[int, int], border: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, as F.pad takes them."""
    pads = []
    for length in reversed(size):
        wanted = 2 * min(border, length // 2)       # a mirror shows no more than there is
        total = next_fast_len(length + wanted, real=True) - length if border else 0
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
        raise ValueError(f"{path}: cannot be read as weights ({str(error).splitlines()[0]})") from None
    if isinstance(state, dict) and {"model", "config"} <= state.keys():
        return state["model"], state["config"]
    recipe = path.with_suffix(".json")
    try:
        return state, json.loads(recipe.read_text())["config"]
    except (OSError, ValueError, KeyError):
        # Not guessed: with shared stages the weights do not tell their number.
        raise ValueError(f"{path}: the network's arguments are missing; put the {recipe.name} that was written "
                         "with it beside it") from None


def check_device(device: str | torch.device) -> None:
    """Raises ValueError, in one line, for a device that PyTorch cannot use here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device}: {str(error).splitlines()[0]}") from None


# ---------------------------------------------------------------------------------------------
# Images in, images out


@torch.inference_mode()
def fuse_pair(model: nn.Module, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False) -> np.ndarray:
    """Fuse one pair of numpy images in eval mode.

    Args:
        model: RPFNet, or any network called as model(ir, vis_y) with (1, 1, H, W) tensors in [0, 1].
        ir: uint8 (H, W).
        vis: uint8 (H, W) gray or (H, W, 3) RGB.
        studio_range: stretch the output as the paper's published pictures do; see `to_image`.
    Returns:
        uint8, shaped like `vis`; the chrominance is that of `vis`.
    Raises:
        TypeError, ValueError: that name what was given.
    """
    _check_arrays(ir, vis)
    luminance, chrominance = split_colour(vis)
    device = next(model.parameters()).device
    inputs = [torch.from_numpy(x).to(device)[None, None] for x in (np.float32(ir) / 255, luminance)]
    training = model.training
    model.eval()
    try:
        fused = model(*inputs)[0, 0].float().cpu().numpy()
    finally:
        model.train(training)
    return to_image(fused, chrominance, studio_range)


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
