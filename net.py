"""RPFNet: Residual Prior-driven Frequency-aware Network (Guan et al., ACM MM 2025, arXiv 2507.06735).

Read from top to bottom: blocks, modules (CPM, RPM, FDFM), one stage, the two networks. Symbols follow
the paper: F_F are the fusion features, F_R the residual features, M = IR - VIS_Y the residual prior.
How layers are computed (norms, pools, Fourier transforms) stands in layers.py.

    from net import RPFNet
    fused = RPFNet.from_pretrained().fuse(ir, vis)      # numpy uint8 in, numpy uint8 out
"""
from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import BatchNorm, channel_pools, fast_length, fold_batch_norm, image_pools, irfft2_of_channels, rfft2_as_channels

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "rpfnet.pth"
MIN_SIZE = 16       # pixels; below, the dilated convolutions see little except padding
MIN_TILE = 64       # pixels
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3   # of glibc's malloc.h
LARGEST_KEPT = 2**27        # bytes; above the features of 768 x 1024 in float32, or of twice that in bfloat16

# ---------------------------------------------------------------------------------------------
# Blocks


class CB(nn.Sequential):
    """Convolutional block: conv k x k (same size), BatchNorm, activation (paper, section 3.2).

    (B, inputs, H, W) -> (B, outputs, H, W)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, activation: type[nn.Module] = nn.ReLU):
        # No bias: the normalisation would remove it.
        super().__init__(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                         BatchNorm(outputs), activation())


class ChannelAttention(nn.Module):
    """CA of Eq. 3: weighs channels by their average and maximum over the image, as CBAM does.

    The paper cites NestFuse [39] for it, whose attention serves to fuse two images; a module for one image is CBAM's.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        average, maximum = image_pools(x)                               # (B, C, 1, 1)
        return x * torch.sigmoid(self.mlp(average) + self.mlp(maximum))


class SpatialAttention(nn.Module):
    """SA of Eq. 3: weighs places by the average and maximum over the channels, 7 x 7, as CBAM does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(channel_pools(x)))           # (B, 2, H, W) -> (B, 1, H, W)


# ---------------------------------------------------------------------------------------------
# Modules


class CPM(nn.Module):
    """Cross-Promotion Module: each branch refines the other (Eq. 1 and 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_residual = CB(channels, channels)
        self.to_fusion = CB(channels, channels, activation=nn.Sigmoid)

    def forward(self, f_f: Tensor, f_r: Tensor) -> tuple[Tensor, Tensor]:
        refined_r = self.to_residual(f_f) + f_r                         # Eq. 1
        refined_f = self.to_fusion(f_r) * f_f + f_f                     # Eq. 2, of the F_R before Eq. 1
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


class FDFM(nn.Module):
    """Frequency-Domain Fusion Module: a 1 x 1 convolution of the spectrum sees the whole image (Eq. 4).

    Eq. 4 prints CB_3x3(F) twice: it is one block, and the sum is the residual connection that the text speaks of.
    The transforms are in float32, under autocast too.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.spatial = CB(channels, channels)
        self.spectral = CB(2 * channels, 2 * channels, kernel=1)

    def forward(self, f_f: Tensor) -> Tensor:
        x = self.spatial(f_f)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = rfft2_as_channels(x.float())                     # (B, 2C, H, W/2+1)
            return x + irfft2_of_channels(self.spectral(spectrum), x.shape[-2:]).to(x.dtype)


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

    def _attention(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        places = F.adaptive_avg_pool2d(x.mT.unflatten(2, size), self.KEYS).flatten(2).mT        # (B, 256, C)
        key, value = self.key_value(places).chunk(2, 2)
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), key, value))
        attended = F.scaled_dot_product_attention(query, key, value)    # (B, heads, HW, C / heads)
        return self.project(attended.transpose(1, 2).flatten(2))


GLOBAL_BRANCHES = {"fourier": FDFM, "transformer": TransformerBlock}


class Features(NamedTuple):
    """What one stage hands on, each (B, C, H, W)."""
    fusion: Tensor              # F_F
    residual: Tensor | None     # F_R; None in a network without the residual prior


class Stage(nn.Module):
    """One iteration of Figure 2: CPM, then FDFM and RPM side by side.

    Args:
        channels: width.
        global_branch, cpm, prior: see RPFNet.
    """

    def __init__(self, channels: int, global_branch: str = "fourier", cpm: bool = True, prior: bool = True):
        super().__init__()
        self.cpm = CPM(channels) if cpm and prior else None
        self.fdfm = GLOBAL_BRANCHES[global_branch](channels)
        self.rpm = RPM(channels) if prior else None

    def forward(self, f_f: Tensor, f_r: Tensor | None) -> Features:
        if self.cpm is not None:
            f_f, f_r = self.cpm(f_f, f_r)
        return Features(self.fdfm(f_f), None if self.rpm is None else self.rpm(f_r))


class Head(nn.Module):
    """Features to one image in [0, 1]: two CBs, a last convolution and a sigmoid.

    The paper prints two CBs and a sigmoid. A sigmoid of a CB, which ends in ReLU, would never fall below 0.5; hence
    the last convolution. It is in float32 under autocast too: bfloat16 has only 128 levels in [0.5, 1].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.Sequential(CB(channels, channels), CB(channels, channels // 2))
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

    def __init__(self, channels: int = 32):
        super().__init__(channels)

    def forward(self, f_r: Tensor) -> Tensor:
        with torch.autocast(f_r.device.type, enabled=False):
            return super().forward(f_r.float())


# ---------------------------------------------------------------------------------------------
# The network


class RPFNet(nn.Module):
    """The fusion network (paper, section 3.2 and Figure 2).

    Its BatchNorm has statistics of its own for each iteration: three iterations have three distributions, and one set
    of running statistics for all makes eval mode wrong. In eval mode an image therefore does not depend on its batch.

    Args:
        channels: width of all features.
        stages: the number n of iterations.
        sharing: "convolutions" (default): all iterations have the same convolutions; "none": each has its own.
        global_branch: "fourier" (default), or "transformer", the ablation "FDFM => Trans. block".
        cpm: False leaves the features as they are, the ablation "w/o CPM".
        prior: False leaves out the residual branch (RPM and CPM), the ablation "w/o res prior".
        border: in eval mode the sources are mirrored by at least so many pixels on each side (up to a
            length that the FFT likes) and the result is cropped again, so that what zero padding and the
            FFT's wrap-around do to a frame falls outside. 0: off.
    """

    def __init__(self, channels: int = 32, stages: int = 3, sharing: str = "convolutions",
                 global_branch: str = "fourier", cpm: bool = True, prior: bool = True, border: int = 8):
        super().__init__()
        for name, value, known in (("sharing", sharing, ("convolutions", "none")),
                                   ("global_branch", global_branch, tuple(GLOBAL_BRANCHES))):
            if value not in known:
                raise ValueError(f"{name}={value!r}; choose from {', '.join(known)}")
        if stages < 1 or channels < 4 or channels % 4 or border < 0:
            raise ValueError(f"stages={stages}, channels={channels}, border={border}: at least 1, 4 and 0 are needed, "
                             "and channels in fours")
        self.config = {"channels": channels, "stages": stages, "sharing": sharing, "global_branch": global_branch,
                       "cpm": cpm, "prior": prior, "border": border}
        self.stem_f = CB(2, channels)
        self.stem_r = CB(1, channels) if prior else None
        self.stages = nn.ModuleList(Stage(channels, global_branch, cpm, prior) for _ in range(stages))
        if sharing == "convolutions":
            _share_convolutions(self.stages)
        self.head = Head(channels)
        self.bfloat16 = False

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
        if self.bfloat16:
            with torch.autocast(ir.device.type, torch.bfloat16):
                return self._fuse(ir, vis_y, return_features)
        return self._fuse(ir, vis_y, return_features)

    def _fuse(self, ir: Tensor, vis_y: Tensor, return_features: bool) -> Tensor | tuple[Tensor, list[Features]]:
        pads = _mirror_pads(ir.shape[-2:], 0 if self.training else self.config["border"])
        sources = F.pad(torch.cat([ir, vis_y], 1), pads, mode="reflect")                # (B, 2, H, W)
        f_f, f_r = self.stem_f(sources), None
        if self.stem_r is not None:
            f_r = self.stem_r(sources[:, :1] - sources[:, 1:])                          # of M
        features = [Features(f_f, f_r)]
        for stage in self.stages:
            f_f, f_r = stage(f_f, f_r)
            if return_features:
                features.append(Features(f_f, f_r))
        fused = self.head(f_f if f_r is None else f_f + f_r)
        place = _inside(pads, ir.shape[-2:])
        if return_features:
            return fused[place], [Features(*(x if x is None else x[place] for x in f)) for f in features]
        return fused[place]

    def use_image_statistics(self, on: bool = True) -> RPFNet:
        """Normalise by the statistics of each image, in eval mode, as the published pictures were made. Returns self.

        Raises:
            ValueError: `optimize` has folded the normalisation into the convolutions.
        """
        norms = [module for module in self.modules() if isinstance(module, BatchNorm)]
        if on and not norms:
            raise ValueError("image statistics need the BatchNorm layers, which optimize() has folded into convolutions")
        for norm in norms:
            norm.image_statistics = on
        return self

    def optimize(self, bfloat16: bool = False, compiled: bool = False) -> RPFNet:
        """Make inference faster where the picture stays the same. Not to be trained any more.

        BatchNorm is folded into the convolutions, which is exact to rounding.

        Args:
            bfloat16: also compute in bfloat16, except for the FFTs and the last step. Over 50 dB from the float32
                picture on real pairs (see tests). Pays on GPUs, and on CPUs with bfloat16 instructions
                (AVX-512 BF16, AMX); older ones are slower with it.
            compiled: also torch.compile, with CUDA graphs: for many images of one size on a GPU. The first of each
                size takes a minute, and after eight sizes PyTorch stops compiling. Gains nothing on CPUs. What
                the network itself returns is then overwritten by its next call: clone what you keep.
        Returns:
            self.
        """
        fold_batch_norm(self.eval())
        self.bfloat16 = bfloat16
        if compiled:
            self.compile(mode="reduce-overhead", dynamic=False)
        return self.to(memory_format=torch.channels_last)

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

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False, tile: int = 0,
             as_published: bool = False) -> np.ndarray:
        """Fuse one pair of numpy images, on the device of the network; see `fuse_pair`.

        as_published: with the statistics of this image, as the published pictures were made.
        """
        if not as_published:
            return fuse_pair(self, ir, vis, studio_range, tile)
        try:
            return fuse_pair(self.use_image_statistics(), ir, vis, studio_range, tile)
        finally:
            self.use_image_statistics(False)


def _share_convolutions(stages: nn.ModuleList) -> None:
    """Give all stages the convolutions (and linear layers) of the first; BatchNorm layers stay their own."""
    for stage in stages[1:]:
        for first, other in zip(stages[0].modules(), stage.modules()):
            if isinstance(first, (nn.Conv2d, nn.Linear)):
                other.weight, other.bias = first.weight, first.bias


def _mirror_pads(size: tuple[int, int], border: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, as F.pad takes them."""
    pads = []
    for length in reversed(size):
        wanted = 2 * min(border, length // 2)       # a mirror shows no more than there is
        total = fast_length(length + wanted) - length if border else 0
        pads += [total // 2, total - total // 2]
    return tuple(pads)


def _inside(pads: tuple[int, int, int, int], size: tuple[int, int]) -> tuple:
    """Index of the part that padding did not add."""
    left, _, top, _ = pads
    return ..., slice(top, top + size[0]), slice(left, left + size[1])


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
