"""A network for the frames of one video, whose global pools follow an average over time."""
from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from images import luma
from inference import fuse_pair
from layers import ImagePools

KEEP = 0.9              # weight of the past in the steady pools

# A scene cut. Inside five clips of M3SVD the largest change is 6.0, where the camera's gain jumps; from the end of one to the
# start of another the smallest is 22 (results/cuts.csv). The factor is for a camera that pans.
CUT_LEAST = 10.0        # gray levels
CUT_FACTOR = 3.0        # times the usual change
THUMBNAIL = 32, 24      # pixels


class Cuts:
    """Finds scene cuts: frames that differ much more from the one before than frames did so far.

    The change is the mean absolute difference of both sources, averaged down to 32 x 24 pixels. It is a cut above 10 gray
    levels and above 3 times the usual change, which is the exponential average of all changes so far.

    Attributes:
        change: from the last frame but one to the last, gray levels.
        usual: the usual change before that.
    """

    def __init__(self):
        self.change = self.usual = 0.0
        self._thumbnails: np.ndarray | None = None

    def is_cut(self, ir: np.ndarray, vis: np.ndarray) -> bool:
        """Whether a new scene begins with this frame, uint8 (H, W) and (H, W) or (H, W, 3); never with the first."""
        small = np.stack([cv2.resize(luma(x), THUMBNAIL, interpolation=cv2.INTER_AREA) for x in (ir, vis)]).astype(np.float32)
        self.usual = KEEP * self.usual + (1 - KEEP) * self.change
        self.change = 0.0 if self._thumbnails is None else float(np.abs(small - self._thumbnails).mean())
        self._thumbnails = small
        return self.change > max(CUT_LEAST, CUT_FACTOR * self.usual)


class Steady:
    """A network for the frames of one video: its global pools follow an exponential average over time.

    The channel attention weighs channels by their average and maximum over the image. A hot object that enters changes
    both, and with them the static background. Averaged over frames they change slowly. Nothing else is averaged, so
    a moving object leaves no trail. The first frame, and the first after a scene cut (`Cuts`), is fused as an image alone.

    Args:
        model: as for `inference.fuse_pair`. Its `ImagePools` carry hooks until the end of the `with` block.
        keep: weight of the past, 0 to below 1. 0: each frame is fused as an image alone, exactly.
    Raises:
        ValueError: keep out of its range.
    """

    def __init__(self, model: nn.Module, keep: float = KEEP):
        if not 0 <= keep < 1:
            raise ValueError(f"keep={keep}; a weight from 0 to below 1 is needed")
        self.model, self.keep = model, keep
        self._averages: dict[nn.Module, list[Tensor]] = {}
        self._cuts = Cuts()
        pools = [module for module in model.modules() if isinstance(module, ImagePools)] if keep else []
        self._hooks = [module.register_forward_hook(self._follow) for module in pools]

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._averages.clear()

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False) -> np.ndarray:
        """Fuse the next frame; arguments, result and errors as of `inference.fuse_pair`."""
        if self._hooks and self._cuts.is_cut(ir, vis):
            self._averages.clear()
        return fuse_pair(self.model, ir, vis, studio_range)

    def _follow(self, module: nn.Module, _: object, pools: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        # In float32: bfloat16 has no room for a tenth of a small change.
        new = [pool.float() for pool in pools]
        if module in self._averages:
            new = [torch.lerp(pool, before, self.keep) for pool, before in zip(new, self._averages[module])]
        self._averages[module] = new
        return tuple(average.to(pool.dtype) for average, pool in zip(new, pools))
