"""RPFNet: Residual Prior-driven Frequency-aware Network (Guan et al., ACM MM 2025, arXiv 2507.06735).

Read from top to bottom: blocks, modules (CPM, RPM, FDFM), one stage, the two networks. Symbols follow
the paper: F_F are the fusion features, F_R the residual features, M = IR - VIS_Y the residual prior.
How layers are computed (norms, pools, Fourier transforms) stands in layers.py.

    from net import RPFNet
    fused = RPFNet.from_pretrained().fuse(ir, vis)      # numpy uint8 in, numpy uint8 out
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inference import check_batch, fuse_pair
from layers import (
    BatchNorm,
    ImagePools,
    TransformerBlock,
    at_least_float32,
    channel_pools,
    fold_batch_norm,
    inside,
    irfft2_of_channels,
    mirror_pads,
    rfft2_as_channels,
    share_convolutions,
)
from support.runtime import check_device
from weights import check_config, restored

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
        self.pools = ImagePools()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(sum(self.mlp(pooled) for pooled in self.pools(x)))     # two of (B, C, 1, 1)


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
            spectrum = rfft2_as_channels(at_least_float32(x))           # (B, 2C, H, W/2+1)
            return x + irfft2_of_channels(self.spectral(spectrum), x.shape[-2:]).to(x.dtype)


GLOBAL_BRANCHES = {"fourier": FDFM, "transformer": TransformerBlock}


class Features(NamedTuple):
    """What one stage hands on, each (B, C, H, W)."""
    fusion: Tensor              # F_F
    residual: Tensor | None     # F_R; None in a network without the residual prior

    def cropped(self, place: tuple) -> Features:
        return Features(self.fusion[place], None if self.residual is None else self.residual[place])


class Stage(nn.Module):
    """One iteration of Figure 2: CPM, then FDFM and RPM side by side. Arguments as of RPFNet."""

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

    def __init__(self, channels: int = 32):
        super().__init__()
        self.blocks = nn.Sequential(CB(channels, channels), CB(channels, channels // 2))
        self.last = nn.Conv2d(channels // 2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        with torch.autocast(x.device.type, enabled=False):
            return torch.sigmoid(self.last(at_least_float32(x)))


class AuxiliaryDecoder(Head):
    """Decodes the residual features F_R^n to M', on which L_SS acts; used in training only (Eq. 5-7).

    (B, C, H, W) -> (B, 1, H, W) in [0, 1]. In float32 throughout: in bfloat16 its sigmoid
    saturates, M' goes flat and L_SS has no gradient any more.
    """

    def forward(self, f_r: Tensor) -> Tensor:
        with torch.autocast(f_r.device.type, enabled=False):
            return super().forward(at_least_float32(f_r))


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
        self.config: dict[str, Any] = {"channels": channels, "stages": stages, "sharing": sharing,
                                       "global_branch": global_branch, "cpm": cpm, "prior": prior, "border": border}
        check_config(self.config, {"sharing": ("convolutions", "none"), "global_branch": tuple(GLOBAL_BRANCHES)})
        self.stem_f = CB(2, channels)
        self.stem_r = CB(1, channels) if prior else None
        self.stages = nn.ModuleList(Stage(channels, global_branch, cpm, prior) for _ in range(stages))
        if sharing == "convolutions":
            share_convolutions(self.stages)
        self.head = Head(channels)
        self.uses_bfloat16 = False

    def forward(self, ir: Tensor, vis_y: Tensor,
                return_features: bool = False) -> Tensor | tuple[Tensor, list[Features]]:
        """Fuse a batch.

        Args:
            ir, vis_y: (B, 1, H, W) in [0, 1], H and W at least 16, odd sizes too.
            return_features: also return the features before the first and after each stage
                (n + 1 entries; `features[-1].residual` is what the auxiliary decoder reads).
        Returns:
            The fused luminance, (B, 1, H, W) in [0, 1], float32 (float64 after `double()`).
        Raises:
            ValueError: wrong shapes or dtypes, or a network that was cast to half precision.
        """
        check_batch(ir, vis_y)
        if self.head.last.weight.element_size() < 4:
            raise ValueError(f"the weights are {self.head.last.weight.dtype}, which the FFTs are not computed in; "
                             "use optimize(bfloat16=True), or torch.autocast, in place of half() or bfloat16()")
        if self.uses_bfloat16:
            with torch.autocast(ir.device.type, torch.bfloat16):
                return self._fuse(ir, vis_y, return_features)
        return self._fuse(ir, vis_y, return_features)

    def _fuse(self, ir: Tensor, vis_y: Tensor, return_features: bool) -> Tensor | tuple[Tensor, list[Features]]:
        pads = mirror_pads(ir.shape[-2:], 0 if self.training else self.config["border"])
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
        place = inside(pads, ir.shape[-2:])
        if return_features:
            return fused[place], [f.cropped(place) for f in features]
        return fused[place]

    def use_image_statistics(self, on: bool = True) -> RPFNet:
        """Normalise by the statistics of each image, in eval mode, as the published pictures were made. Returns self.

        Raises:
            ValueError: `optimize` has folded the normalisation into the convolutions.
        """
        norms = self._norms()
        if on and not norms:
            raise ValueError("image statistics need the BatchNorm layers, which optimize() has folded away")
        for norm in norms:
            norm.image_statistics = on
        return self

    def _norms(self) -> list[BatchNorm]:
        return [module for module in self.modules() if isinstance(module, BatchNorm)]

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
        self.uses_bfloat16 = bfloat16
        if compiled:
            self.compile(mode="reduce-overhead", dynamic=False)
        return self.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(cls, path: str | Path = "contrast", device: str | torch.device = "cpu") -> RPFNet:
        """The trained network in eval mode.

        Args:
            path: a name of weights.CHECKPOINTS, after the recipes that trained them; or weights (`.pth`, with the recipe beside
                it as `.json`); or a training checkpoint of train.py.
            device: where to put it.
        Raises:
            FileNotFoundError, ValueError: no such file, or not sound weights of this network; one line that names it.
        """
        check_device(device)
        model = restored(cls, path)
        # Layout changes no value; a single image is convolved faster so, on CPUs and GPUs.
        return model.to(device).to(memory_format=torch.channels_last).eval()

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False, tile: int = 0,
             as_published: bool = False) -> np.ndarray:
        """Fuse one pair of numpy images, on the device of the network; see `fuse_pair`.

        as_published: with the statistics of this image, as the published pictures were made.
        """
        if not as_published:
            return fuse_pair(self, ir, vis, studio_range, tile)
        before = any(norm.image_statistics for norm in self._norms())
        try:
            return fuse_pair(self.use_image_statistics(), ir, vis, studio_range, tile)
        finally:
            self.use_image_statistics(before)
