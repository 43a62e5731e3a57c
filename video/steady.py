"""Video without flicker: values that depend on the whole image are averaged over time. Detection of scene cuts."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from threading import get_ident

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from images import luma
from inference import check_arrays, fuse_pair
from layers import ImagePools
from net import FDFM

KEEP = 0.97             # default weight of the past in the averages of `Steady`
USUAL_KEEP = 0.9        # weight of the past in the usual change of `Cuts`

# Thresholds of a scene cut. Inside five clips of M3SVD, the largest change is 6.0, caused by a jump of the camera's
# gain. From the end of one clip to the start of another, the smallest change is 22 (results/cuts.csv). The factor
# prevents false cuts when the camera pans.
CUT_LEAST = 10.0        # gray levels
CUT_FACTOR = 3.0        # multiple of the usual change
THUMBNAIL = 32, 24      # pixels, width and height


class Cuts:
    """Finds scene cuts: frames that differ from the previous frame much more than usual.

    The change is the mean absolute difference between two frames, over both sources at 32 x 24 pixels. A change is a
    cut if it is above 10 gray levels and above 3 times the usual change. The usual change is the exponential average of
    all earlier changes.

    Attributes:
        change: change between the last two frames, gray levels.
        usual: usual change before that, gray levels.
    """

    def __init__(self):
        self.change = self.usual = 0.0
        self._thumbnails: np.ndarray | None = None

    def is_cut(self, ir: np.ndarray, vis: np.ndarray) -> bool:
        """Whether a new scene begins with this frame. False for the first frame.

        Args:
            ir: uint8 (H, W).
            vis: uint8 (H, W) or (H, W, 3).
        """
        small = np.stack([cv2.resize(luma(x), THUMBNAIL, interpolation=cv2.INTER_AREA) for x in (ir, vis)]).astype(np.float32)
        self.usual = USUAL_KEEP * self.usual + (1 - USUAL_KEEP) * self.change
        self.change = 0.0 if self._thumbnails is None else float(np.abs(small - self._thumbnails).mean())
        self._thumbnails = small
        return self.change > max(CUT_LEAST, CUT_FACTOR * self.usual)


class Steady:
    """Fuses the frames of one video with exponential averages over time of the values that depend on the whole image.

    A hot object that enters the scene changes such values, and thereby also the static background. An average over the
    frames changes slowly. There are two kinds of such values:

    - The average and the maximum of each channel, which the channel attention uses.
    - The absolute values in the ReLU on the spectrum of the FDFM (Eq. 4): ReLU(z) = z / 2 + |z| / 2. The inverse FFT of
      |z| depends on the whole image at each pixel, so |z| is averaged. The linear term z / 2 is that of the frame. It
      holds the moving objects.

    Other values of this kind are not averaged: image statistics (`RPFNet.use_image_statistics`), and the keys of the
    ablation with a transformer.

    Pixels are not averaged, so a moving object leaves no visible trail. The first frame, and the first frame after a
    scene cut (`Cuts`) or a change of the size, is fused as a single image.

    Args:
        model: as for `inference.fuse_pair`. During `fuse`, its `ImagePools` modules and the ReLUs on its spectra have
            forward hooks. Between two frames, and in other threads, it can fuse single images or the frames of another
            video.
        keep: weight of the past, 0 <= keep < 1. 0: each frame is fused exactly as a single image.
    Raises:
        ValueError: keep is out of its range, or the model is compiled (its hooks would keep memory of CUDA graphs, which
            the next frame overwrites).
    """

    def __init__(self, model: nn.Module, keep: float = KEEP):
        if not 0 <= keep < 1:
            raise ValueError(f"keep={keep}; a weight from 0 to below 1 is needed")
        if keep and (getattr(model, "_compiled_call_impl", None) or hasattr(model, "_orig_mod")):    # of torch.compile
            raise ValueError("a compiled network cannot keep averages over frames; use optimize() without compiled=True")
        self.model, self.keep = model, keep
        self._averages: dict[nn.Module, list[Tensor]] = {}
        self._cuts, self._size = Cuts(), (0, 0)
        modules = list(model.modules()) if keep else []
        self._places: list[tuple[nn.Module, Callable]] = [
            *((module, self._average_pools) for module in modules if isinstance(module, ImagePools)),
            *((module.spectral[-1], self._average_absolute) for module in modules if isinstance(module, FDFM))]

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *_: object) -> None:
        self._averages.clear()

    def fuse(self, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False) -> np.ndarray:
        """Fuse the next frame; arguments, result and errors as for `inference.fuse_pair`."""
        check_arrays(ir, vis)
        if self._places and (self._cuts.is_cut(ir, vis) or ir.shape != self._size):
            self._averages.clear()
        self._size = ir.shape
        with ExitStack() as hooks:
            for module, average in self._places:
                hooks.callback(module.register_forward_hook(_in_this_thread(average)).remove)
            return fuse_pair(self.model, ir, vis, studio_range)

    def _average_pools(self, module: nn.Module, _: object, pools: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        # The average is kept in float32. In bfloat16, a small change would be lost by rounding.
        new = [pool.float() for pool in pools]
        if module in self._averages:
            new = [torch.lerp(pool, before, self.keep) for pool, before in zip(new, self._averages[module])]
        self._averages[module] = new
        return tuple(average.to(pool.dtype) for average, pool in zip(new, pools))

    def _average_absolute(self, module: nn.Module, inputs: tuple[Tensor], rectified: Tensor) -> Tensor:
        half = inputs[0] / 2
        if module not in self._averages:
            self._averages[module] = [rectified - half]             # |z| / 2
            return rectified                                        # exact, also in its rounding
        average, = self._averages[module]
        average.lerp_(rectified.sub_(half), 1 - self.keep)          # in place: new tensors of this size cost more time
        return half.add_(average)


def _in_this_thread(hook: Callable) -> Callable:
    """The hook, without effect in other threads, which can fuse with the same network."""
    thread = get_ident()
    return lambda *args: hook(*args) if get_ident() == thread else None
