"""Inference: from numpy images to numpy images.

The functions accept any network that can be called as `model(ir, vis_y)`; see `fuse_pair`.
"""
from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from images import FLOAT_REMEDY, split_colour, to_image

MIN_SIZE = 16       # pixels; in smaller images, the dilated convolutions read mostly padding
MIN_TILE = 64       # pixels, side of a tile


def fuse_pair(model: nn.Module, ir: np.ndarray, vis: np.ndarray, studio_range: bool = False, tile: int = 0) -> np.ndarray:
    """Fuse one pair of numpy images in eval mode.

    Args:
        model: RPFNet, or any network that is called as model(ir, vis_y) with (B, 1, H, W) tensors in [0, 1] and
            returns such a tensor.
        ir: uint8 (H, W), H and W at least 16.
        vis: uint8, gray (H, W) or RGB (H, W, 3).
        studio_range: stretch the contrast, as in the published images; see `images.to_image`.
        tile: side of the tiles in pixels, for images that do not fit into memory; see `fuse_tiles`. 0: no tiles.
    Returns:
        uint8 with the shape and the chrominance of `vis`.
    Raises:
        TypeError: an argument that is not a uint8 array.
        ValueError: wrong or different sizes; an output of the network that has another shape, or NaN or infinite values.
    """
    return in_colour_of(vis, fuse_luminance(model, [prepare(ir, vis)], tile)[0], studio_range)


# The three steps of fuse_pair. They are separate so that test.py can read, fuse and write several pairs in parallel.


def prepare(ir: np.ndarray, vis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check a pair and split off its luminance; arguments and errors as for `fuse_pair`.

    Returns:
        ir, unchanged (uint8), and the luminance of vis, float32 (H, W) in [0, 1].
    """
    check_arrays(ir, vis)
    return ir, split_colour(vis)[0]


@torch.inference_mode()
def fuse_luminance(model: nn.Module, pairs: Sequence[tuple[np.ndarray, np.ndarray]], tile: int = 0) -> np.ndarray:
    """Fuse B pairs of one size in one forward pass, in eval mode. Larger batches of small images use a GPU better.

    Args:
        model, tile: as for `fuse_pair`.
        pairs: B results of `prepare`.
    Returns:
        Fused luminance, float32 (B, H, W) in [0, 1].
    Raises:
        ValueError: the network returned no tensor of the shape of its input, or NaN or infinite values. They would
            become black or white pixels.
    """
    weight = next(model.parameters(), torch.empty(0))       # without parameters, such as an average: float32 on the CPU
    batches = (torch.from_numpy(np.stack(images)[:, None]).to(weight.device) for images in zip(*pairs))
    ir, vis_y = (batch.to(weight.dtype) for batch in batches)      # infrared is copied to the device as uint8
    training = [module for module in model.modules() if module.training]     # others may be in eval mode on purpose
    model.eval()
    try:
        ir = ir / 255
        fused = fuse_tiles(model, ir, vis_y, tile) if tile else called(model, ir, vis_y)
        luminance = fused[:, 0].float().cpu().numpy()
    finally:
        for module in training:
            module.training = True
    if not np.isfinite(luminance.sum()):        # the sum is finite only if all values are; faster than isfinite of each
        raise ValueError("the network gave values that are not finite (NaN or infinite); are its weights sound?")
    return luminance


def called(model: nn.Module, ir: Tensor, vis_y: Tensor) -> Tensor:
    """model(ir, vis_y). Raises ValueError unless it is a tensor of the shape of `ir`, (B, 1, H, W)."""
    fused = model(ir, vis_y)
    if not isinstance(fused, Tensor) or fused.shape != ir.shape:
        given = f"a tensor {tuple(fused.shape)}" if isinstance(fused, Tensor) else f"a {type(fused).__name__}"
        raise ValueError(f"the network returned {given}; expected the fused luminance, (B, 1, H, W) = {tuple(ir.shape)}")
    return fused


def in_colour_of(vis: np.ndarray, luminance: np.ndarray, studio_range: bool = False) -> np.ndarray:
    """Fused luminance (H, W) in [0, 1] -> uint8 image with the shape and the chrominance of `vis`."""
    # vis is split a second time: keeping the chrominance from `prepare` would cost 8 bytes a pixel of each queued pair.
    return to_image(luminance, split_colour(vis)[1], studio_range)


def fuse_tiles(model: nn.Module, ir: Tensor, vis_y: Tensor, tile: int) -> Tensor:
    """Fuse tile by tile. This needs the memory of one tile only, but gives another result than the whole image.

    The spectrum, the global pools and the image statistics (if used) are those of one tile, so the contrast can differ
    from tile to tile. Tiles overlap by a quarter or more and are blended linearly. This hides the seams, but not the
    difference in contrast.

    Args:
        model: as for `fuse_pair`.
        ir, vis_y: (B, 1, H, W) in [0, 1].
        tile: side of a tile in pixels, at least 64. An image that is not larger is fused as a whole.
    Returns:
        Fused luminance, (B, 1, H, W) in [0, 1].
    Raises:
        ValueError: `tile` is no whole number from 64; an output of the network as for `called`.
    """
    if not isinstance(tile, Integral) or tile < MIN_TILE:
        raise ValueError(f"tile={tile!r}; a whole number of at least {MIN_TILE} pixels, better 1024 or more")
    height, width = ir.shape[2:]
    total, weights = torch.zeros_like(ir), torch.zeros_like(ir)
    window = torch.outer(*(_ramp(min(tile, length), tile // 4) for length in (height, width))).to(ir)
    for top in _tile_starts(height, tile):
        for left in _tile_starts(width, tile):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            part = called(model, ir[place], vis_y[place])
            total[place] += part * window
            weights[place] += window
    return total / weights


def _tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles along one axis. Tiles are spaced evenly and overlap by a quarter or more."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - tile // 4)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Blending weights along one axis, (length,): 1 in the middle, a linear slope at both ends, always above 0."""
    place = torch.arange(length)
    return (torch.minimum(place, length - 1 - place) + 1).div(overlap + 1).clamp_max(1)


def check_batch(ir: Tensor, vis_y: Tensor) -> None:
    """Raises TypeError, ValueError unless both are float tensors of one shape (B, 1, H, W) with B >= 1 and H, W >= 16."""
    if not (isinstance(ir, Tensor) and isinstance(vis_y, Tensor)):
        raise TypeError(f"expected tensors, got {type(ir).__name__} and {type(vis_y).__name__}; for numpy images, call "
                        "model.fuse(ir, vis)")
    if ir.shape != vis_y.shape or ir.dim() != 4 or ir.shape[1] != 1 or not ir.shape[0] or min(ir.shape[2:]) < MIN_SIZE:
        raise ValueError(f"expected ir and vis_y of one shape (B, 1, H, W) with B >= 1 and H, W >= {MIN_SIZE}, "
                         f"got {tuple(ir.shape)} and {tuple(vis_y.shape)}")
    if not ir.is_floating_point() or not vis_y.is_floating_point():
        raise ValueError(f"expected floats in [0, 1], got {ir.dtype} and {vis_y.dtype}; divide 8-bit images by 255")


def check_arrays(ir: np.ndarray, vis: np.ndarray) -> None:
    """Check the images of a pair. Raises TypeError, ValueError, as for `fuse_pair`."""
    for name, image in (("ir", ir), ("vis", vis)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise TypeError(f"{name}: expected a numpy array of uint8, got {_kind_and_remedy(image)}")
    if ir.ndim != 2:
        raise ValueError(f"ir: expected (H, W), got {_shape_and_remedy(ir)}")
    if vis.ndim not in (2, 3) or vis.ndim == 3 and vis.shape[2] != 3:
        raise ValueError(f"vis: expected (H, W) or (H, W, 3), got {_shape_and_remedy(vis)}")
    if ir.shape != vis.shape[:2]:
        raise ValueError(f"ir is {ir.shape} and vis is {vis.shape[:2]}; they must be aligned, pixel by pixel")
    if min(ir.shape) < MIN_SIZE:
        raise ValueError(f"images of {ir.shape} are too small; H and W must be at least {MIN_SIZE}")


def _kind_and_remedy(image: object) -> str:
    if image is None:
        return "None; did cv2.imread find the file?"
    if isinstance(image, Tensor):
        return "a tensor; call model(ir, vis_y) with tensors"
    if not isinstance(image, np.ndarray):
        remedy = "; use np.asarray(image)" if hasattr(image, "__array_interface__") else (
            "; read the file first (images.read_ir, images.read_vis)" if isinstance(image, str | Path) else "")
        return type(image).__name__ + remedy
    remedies = {"f": FLOAT_REMEDY, "u": "; images.read_ir and images.read_vis scale 16-bit files"}
    return f"{image.dtype}{remedies.get(image.dtype.kind, '')}"


def _shape_and_remedy(image: np.ndarray) -> str:
    remedies = {1: "drop the last axis", 3: "convert it to gray", 4: "drop the alpha channel"}
    remedy = remedies.get(image.shape[2]) if image.ndim == 3 else None
    return f"{image.shape}; {remedy or 'give one image at a time'}"
