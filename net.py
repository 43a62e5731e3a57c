"""RPFNet: Residual Prior-driven Frequency-aware Network (Guan et al., ACM MM 2025, arXiv 2507.06735).

The order is: blocks, modules (CPM, RPM, FDFM), one stage, the output heads, the network. Symbols are those of the
paper: F_F are the fusion features, F_R the residual features, M = IR - VIS_Y is the residual prior. layers.py holds
normalisation, pooling, Fourier transforms, padding and weight sharing; inference.py converts and fuses numpy images.
docs/deviations.md lists the choices that the paper leaves open.

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
    check_range,
    fold_batch_norm,
    inside,
    irfft2_of_channels,
    mirror_pads,
    rfft2_as_channels,
    share_convolutions,
    twin,
)
from support.runtime import check_device
from weights import check_config, restored

OVERSHOOT = 0.5     # tolerance of the range check: resampling and gradient steps leave [0, 1], but not as 0 to 255 does

# ---------------------------------------------------------------------------------------------
# Blocks


class CB(nn.Sequential):
    """Convolutional block: k x k convolution with zero padding, BatchNorm, activation, as in Eq. 1 and 2.

    (B, inputs, H, W) -> (B, outputs, H, W); `kernel` is odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, activation: type[nn.Module] = nn.ReLU):
        # No bias: BatchNorm subtracts the mean, so a bias would have no effect.
        super().__init__(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                         BatchNorm(outputs), activation())


class ChannelAttention(nn.Module):
    """CA of Eq. 3, as in CBAM: channel weights from the global average and maximum. (B, C, H, W) -> (B, C, H, W)

    The paper cites NestFuse [39], whose attention fuses two images; Eq. 3 has one input, so CBAM is used. The hidden
    layer of the MLP has C / reduction channels. The paper does not print this factor; 4 is our choice.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.pools = ImagePools()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(sum(self.mlp(pooled) for pooled in self.pools(x)))     # weights: (B, C, 1, 1)


class SpatialAttention(nn.Module):
    """SA of Eq. 3, as in CBAM: pixel weights from the average and maximum of the channels. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(channel_pools(x)))           # weights: (B, 2, H, W) -> (B, 1, H, W)


# ---------------------------------------------------------------------------------------------
# Modules


class CPM(nn.Module):
    """Cross-Promotion Module: each branch refines the other (Eq. 1 and 2). All features are (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_residual = CB(channels, channels)
        self.to_fusion = CB(channels, channels, activation=nn.Sigmoid)

    def forward(self, f_f: Tensor, f_r: Tensor) -> tuple[Tensor, Tensor]:
        refined_r = self.to_residual(f_f) + f_r                         # Eq. 1
        refined_f = self.to_fusion(f_r) * f_f + f_f                     # Eq. 2 takes F_R from before Eq. 1
        return refined_f, refined_r


class RPM(nn.Module):
    """Residual Prior Module: attention, then the sum of dilated convolutions with rates 1, 3, 5 (Eq. 3).

    Input and output are (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.ca = ChannelAttention(channels)
        self.sa = SpatialAttention()
        self.dilated = nn.ModuleList(       # Eq. 3 prints convolutions: no BatchNorm, no activation
            nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in (1, 3, 5))

    def forward(self, f_r: Tensor) -> Tensor:
        attended = self.sa(self.ca(f_r))
        return sum(conv(attended) for conv in self.dilated)


class FDFM(nn.Module):
    """Frequency-Domain Fusion Module: a 1 x 1 block on the spectrum sees the whole image at each pixel (Eq. 4).

    Eq. 4 prints CB_3x3(F) twice. Here both are the same block, so the sum is the residual connection of the paper's
    text. The spectral branch is computed in float32, also under autocast. On GPUs, its convolution uses TF32 unless that
    is turned off. Input and output are (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.spatial = CB(channels, channels)
        self.spectral = CB(2 * channels, 2 * channels, kernel=1)

    def forward(self, f_f: Tensor) -> Tensor:
        x = self.spatial(f_f)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = rfft2_as_channels(at_least_float32(x))           # real, imaginary parts: (B, 2C, H, W // 2 + 1)
            return x + irfft2_of_channels(self.spectral(spectrum), x.shape[-2:]).to(x.dtype)


GLOBAL_BRANCHES = {"fourier": FDFM, "transformer": TransformerBlock}


class Features(NamedTuple):
    """Features before the first stage, or after a stage, each (B, C, H, W)."""
    fusion: Tensor              # F_F
    residual: Tensor | None     # F_R; None if the network has no residual prior

    def cropped(self, place: tuple) -> Features:
        """The same region of both; place: an index of (B, C, H, W)."""
        return Features(self.fusion[place], None if self.residual is None else self.residual[place])


class Stage(nn.Module):
    """One iteration of Figure 2: CPM, then FDFM and RPM in parallel. Arguments as for RPFNet."""

    def __init__(self, channels: int, global_branch: str = "fourier", cpm: bool = True, prior: bool = True):
        super().__init__()
        self.cpm = CPM(channels) if cpm and prior else None
        self.fdfm = GLOBAL_BRANCHES[global_branch](channels)
        self.rpm = RPM(channels) if prior else None

    def forward(self, f_f: Tensor, f_r: Tensor | None) -> Features:
        if self.cpm is not None:
            f_f, f_r = self.cpm(f_f, f_r)               # the refined features of Eq. 1 and 2, input of Eq. 3 and 4
        return Features(self.fdfm(f_f), None if self.rpm is None else self.rpm(f_r))


class Head(nn.Module):
    """Reconstruction head: two CBs, a last convolution and a sigmoid. (B, C, H, W) -> (B, 1, H, W) in [0, 1]

    The paper prints two CBs and a sigmoid. A CB ends in ReLU, and a sigmoid of values above 0 is above 0.5. So we add a
    last convolution. It is in float32, also under autocast: bfloat16 has only 128 levels in [0.5, 1].
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
    """Decodes the residual features F_R^n to M', the input of L_SS (Eq. 5-7). Built by trainer.py, for training only.

    (B, C, H, W) -> (B, 1, H, W) in [0, 1]. The paper does not describe its layers; ours are those of the head. All of
    it is in float32, also under autocast, as the losses are.
    """

    def forward(self, f_r: Tensor) -> Tensor:
        with torch.autocast(f_r.device.type, enabled=False):
            return super().forward(at_least_float32(f_r))


# ---------------------------------------------------------------------------------------------
# The network


class RPFNet(nn.Module):
    """The fusion network (paper, section 3.2 and Figure 2).

    The iterations share their convolutions, as in the authors' release; the paper does not say it. Each iteration has
    its own BatchNorm weights, biases and running statistics: the features of the iterations have different
    distributions, so shared statistics would be wrong in eval mode. In eval mode, the result of an image does not depend
    on the other images of the batch.

    Args:
        channels: number of feature channels, a multiple of 4 for the channel attention. The paper prints no number.
        stages: number N of iterations.
        sharing: "convolutions" (default): all iterations use the same convolutions; "none": each has its own.
        global_branch: "fourier" (default), or "transformer" for the ablation "FDFM => Trans. block".
        cpm: False leaves out the CPM, the ablation "w/o CPM".
        prior: False leaves out the residual branch (RPM and CPM), the ablation "w/o res prior".
        border: reflect padding on each side in eval mode, in pixels (ours); 0: none. It is at most half of the image,
            and is then increased to a fast FFT length. The padding is cropped from the result. This removes the border
            artifacts of zero padding and of the periodic FFT. Global pools and image statistics include the padding.
    Raises ValueError for an argument out of its range; see `weights.check_config`.
    """

    range_checked = False       # whether a batch on a GPU has been checked
    optimized = False           # whether `optimize` has been called

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
            ir, vis_y: (B, 1, H, W) in [0, 1], in the dtype of the weights. H and W are at least 16 and may be odd.
            return_features: also return the features before the first and after each stage, n + 1 entries.
                `features[-1].residual` is the input of the auxiliary decoder.
        Returns:
            The fused luminance, (B, 1, H, W) in [0, 1], float32 (float64 after `double()`), or (it, features).
        Raises:
            TypeError: no tensors.
            ValueError: wrong shapes, integers, another dtype or device than that of the weights, or weights in half
                precision. In eval mode also values far outside [0, 1]; on a GPU, this is checked in the first batch
                only, because the check waits for the GPU.
        """
        check_batch(ir, vis_y)
        self._check_devices(ir, vis_y)
        self._check_dtypes(torch.promote_types(ir.dtype, vis_y.dtype), ir.device.type)
        if not self.training and (ir.is_cpu or not self.range_checked):
            self._check_ranges(ir=ir, vis_y=vis_y)
        if self.uses_bfloat16:
            with torch.autocast(ir.device.type, torch.bfloat16):
                return self._fuse(ir, vis_y, return_features)
        return self._fuse(ir, vis_y, return_features)

    def _check_ranges(self, **images: Tensor) -> None:
        seen = [check_range(name, x, -OVERSHOOT, 1 + OVERSHOOT) for name, x in images.items()]
        if all(seen) and not images["ir"].is_cpu:
            self.range_checked = True

    def _check_devices(self, ir: Tensor, vis_y: Tensor) -> None:
        weights = self.head.last.weight.device
        if not ir.device == vis_y.device == weights:
            raise ValueError(f"ir on {ir.device}, vis_y on {vis_y.device}, the weights on {weights}; "
                             "move them to one device with .to(device)")

    def _check_dtypes(self, images: torch.dtype, device: str) -> None:
        weights = self.head.last.weight.dtype
        if weights.itemsize < 4:
            raise ValueError(f"the weights are {weights}, but the FFTs need float32 or float64; "
                             "use optimize(bfloat16=True) or torch.autocast in place of half() or bfloat16()")
        if images != weights:
            converted = self.uses_bfloat16 or torch.is_autocast_enabled(device)
            if not converted or torch.float64 in (images, weights):     # autocast leaves float64 as it is
                raise ValueError(f"the images are {images} and the weights are {weights}; convert one of them")

    def _fuse(self, ir: Tensor, vis_y: Tensor, return_features: bool) -> Tensor | tuple[Tensor, list[Features]]:
        pads = mirror_pads(ir.shape[-2:], 0 if self.training else self.config["border"])
        sources = F.pad(torch.cat([ir, vis_y], 1), pads, mode="reflect")        # (B, 2, H, W), padded
        f_f, f_r = self.stem_f(sources), None
        if self.stem_r is not None:
            f_r = self.stem_r(sources[:, :1] - sources[:, 1:])                          # M = IR - VIS_Y
        features = [Features(f_f, f_r)] if return_features else []
        for stage in self.stages:
            f_f, f_r = stage(f_f, f_r)
            if return_features:
                features.append(Features(f_f, f_r))
        fused = self.head(f_f if f_r is None else f_f + f_r)                            # from F_F^N + F_R^N
        place = inside(pads, ir.shape[-2:])                                             # index that removes the padding
        if return_features:
            return fused[place], [f.cropped(place) for f in features]
        return fused[place]

    def use_image_statistics(self, on: bool = True) -> RPFNet:
        """In eval mode, normalise each image by its own statistics, as for the published images. Returns self.

        Raises ValueError after `optimize`, which folds the BatchNorm layers into the convolutions.
        """
        norms = self._norms()
        if on and not norms:
            reason = "which optimize() has folded away" if self.optimized else "which were replaced, such as by SyncBatchNorm"
            raise ValueError(f"image statistics need the BatchNorm layers of this network, {reason}")
        for norm in norms:
            norm.image_statistics = on
        return self

    def _norms(self) -> list[BatchNorm]:
        return [module for module in self.modules() if isinstance(module, BatchNorm)]

    def train(self, mode: bool = True) -> RPFNet:
        """As for all modules, but a network stays in eval mode after `optimize`, also as a part of another module."""
        return super().train(mode and not self.optimized)

    def optimize(self, bfloat16: bool = False, compiled: bool = False) -> RPFNet:
        """Prepare the network for fast inference, in place. Returns self.

        BatchNorm is folded into the convolutions, which gives each iteration its own. This changes only the rounding.
        Afterwards, the network cannot be trained, and its weights cannot be loaded by `from_pretrained`, so save them
        before.

        Args:
            bfloat16: compute in bfloat16, except for the spectral branch and the last convolution. The PSNR to the
                float32 result is above 50 dB on real pairs (see tests). Faster on GPUs, and on CPUs with bfloat16
                instructions (AVX-512 BF16, AMX). Slower on older CPUs.
            compiled: use torch.compile with CUDA graphs. Meant for many images of one size on a GPU; no gain on
                CPUs. The first image of each size takes a minute. After eight sizes PyTorch stops compiling. The next
                forward pass overwrites the returned tensor, so clone what you keep.
        Raises:
            ValueError: after `use_image_statistics`.
        """
        if any(norm.image_statistics for norm in self._norms()):
            raise ValueError("image statistics cannot be folded into the convolutions; use the network without optimize()")
        fold_batch_norm(self.eval().requires_grad_(False))
        self.optimized, self.uses_bfloat16 = True, bfloat16
        if compiled:
            self.compile(mode="reduce-overhead", dynamic=False)
        return self.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(cls, path: str | Path = "contrast", device: str | torch.device = "cpu") -> RPFNet:
        """Load a trained network, in eval mode.

        Args:
            path: "contrast" (our loss, the default), "paper" (the paper's loss), "medical", "small", "tiny"; a `.pth`
                file of weights with its `.json` file beside it; a training checkpoint (last.pth) of train.py; or a
                file of torch.save({"model": model.state_dict(), "config": model.config}, path).
            device: device of the network.
        Raises:
            OSError, ValueError: no such file, or no valid weights of this network. The message names the file.
        """
        check_device(device)
        model = restored(cls, path)
        # channels_last makes convolutions of single images faster on CPUs and GPUs.
        return model.to(device).to(memory_format=torch.channels_last).eval()

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False, tile: int = 0,
             as_published: bool = False) -> np.ndarray:
        """Fuse one pair of numpy images on the network's device; arguments, result and errors as for `fuse_pair`.

        as_published: normalise by the statistics of this image or tile. Raises ValueError after `optimize`.

        Several threads can use one network if it is in eval mode.
        """
        network = self
        if as_published:        # a twin, so that other threads keep their statistics
            network = twin(self).use_image_statistics()
        return fuse_pair(network, ir, vis, studio_range, tile)
