"""What a fusion loss alone asks for: the pixels of an image are optimised, without a network.

    python results/pixels.py --data data/RoadScene

Central crops of training pairs start from the average of their sources and follow the loss
L_F = L_c + lambda_2 L_s by Adam. What comes out is the picture that the loss likes best, so two losses are
compared in minutes, without a training's noise. Writes one row for each loss to results/pixels.csv.
"""
from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metrics
from dataset import PairDataset, named_pairs
from loss import (
    FrequencyContrastiveLoss,
    FusionLoss,
    SSIMLoss,
    Terms,
    weighted_ssim,
    whole_ssim,
)

METRICS = ("EN", "SF", "SD", "CC", "SCD", "VIF")


class EqualWindows(SSIMLoss):
    """L_s in windows alone, contrast and structure, with equal weights: Eq. 13 without its luminance factor."""

    def forward(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        similarities = (weighted_ssim(fused, (source, source), self.window).mean() for source in (ir, vis_y))
        return 1 - sum(similarities) / 2, {}


class OneByOne(SSIMLoss):
    """L_s whose contrast over the whole image is compared with the sources one by one."""

    def forward(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        windows = 1 - weighted_ssim(fused, (ir, vis_y), self.window).mean()
        whole = 1 - (whole_ssim(fused, (ir, ir)) + whole_ssim(fused, (vis_y, vis_y))).mean() / 2
        return (windows + whole) / 2, {}


def printed(window: int) -> SSIMLoss:
    return SSIMLoss(window, weighted=False, whole=False)


LOSSES = {      # arguments of L_c, L_s, and lambda_2
    "windows of 3 (Eq. 13)": ({}, printed(3), 5.0),
    "windows of 7": ({}, printed(7), 5.0),
    "windows of 11": ({}, printed(11), 5.0),
    "Eq. 13, lambda_2 1.25": ({}, printed(3), 1.25),
    "windows of 7 without luminance": ({}, EqualWindows(), 5.0),
    "weighted windows of 7": ({}, SSIMLoss(whole=False), 5.0),
    "windows of 7 and the whole": ({}, SSIMLoss(weighted=False), 5.0),
    "weighted windows of 7 and the whole, one by one": ({}, OneByOne(), 5.0),
    "weighted windows of 3 and the whole": ({}, SSIMLoss(3), 5.0),
    "weighted windows of 7 and the whole (default)": ({}, SSIMLoss(), 5.0),
    "weighted windows of 11 and the whole": ({}, SSIMLoss(11), 5.0),
    "default, lambda_2 2.5": ({}, SSIMLoss(), 2.5),
    "default, lambda_2 10": ({}, SSIMLoss(), 10.0),
    "default, w as printed (Eq. 9)": ({"weight": "printed"}, SSIMLoss(), 5.0),
    "default, spatial L_c": ({"domain": "spatial"}, SSIMLoss(), 5.0),
    "default, L_c without contrast": ({"contrast": False}, SSIMLoss(), 5.0),
}


def central_crops(data: str, count: int, side: int) -> list[Tensor]:
    """Infrared and visible luminance, each (count, 1, side, side) in [0, 1], of training pairs spread over the list."""
    pairs = named_pairs("roadscene", data, "train")
    crops = [[], []]
    for images in PairDataset(pairs[::len(pairs) // count][:count]).items:
        for kind, image in zip(crops, images):
            top, left = (max(length - side, 0) // 2 for length in image.shape[1:])
            kind.append(image[:, top:top + side, left:left + side])
    return [torch.stack(kind).float() / 255 for kind in crops]


def optimum(loss: FusionLoss, ir: Tensor, vis_y: Tensor, steps: int) -> Tensor:
    """The image, like `ir`, that `steps` steps of Adam reach from the average of the sources."""
    logits = torch.logit(((ir + vis_y) / 2).clamp(0.01, 0.99)).requires_grad_()
    optimiser = torch.optim.Adam([logits], 0.05)
    for step in trange(steps, leave=False):
        optimiser.param_groups[0]["lr"] = 0.05 if step < 0.7 * steps else 0.015
        optimiser.zero_grad()
        loss(logits.sigmoid(), None, ir, vis_y)[0].backward()
        optimiser.step()
    return logits.sigmoid().detach()


def score(fused: Tensor, ir: Tensor, vis_y: Tensor) -> dict[str, float]:
    """Means of the metrics, float protocol, on 8-bit images."""
    levels = [np.uint8(x[:, 0].mul(255).round().numpy()) for x in (fused, ir, vis_y)]
    rows = [metrics.evaluate(*images, names=METRICS) for images in zip(*levels)]
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/RoadScene", help="folder of RoadScene")
    parser.add_argument("--count", type=int, default=6, help="crops (default: 6)")
    parser.add_argument("--side", type=int, default=128, help="of a crop, pixels (default: 128)")
    parser.add_argument("--steps", type=int, default=60, help="of Adam (default: 60)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("pixels.csv"))
    args = parser.parse_args()
    ir, vis_y = central_crops(args.data, args.count, args.side)
    rows = [{"loss": "average of the sources"} | score((ir + vis_y) / 2, ir, vis_y)]
    for name, (contrastive, structure, lambda_2) in LOSSES.items():
        loss = FusionLoss(FrequencyContrastiveLoss(**contrastive), structure, lambda_2=lambda_2)
        rows.append({"loss": name} | score(optimum(loss, ir, vis_y, args.steps), ir, vis_y))
        print(rows[-1], flush=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
