"""Show which image a fusion loss prefers: optimise the pixels of an image, without a network.

    python tools/pixels.py --data data/RoadScene

The images are central crops of training pairs. They start as the average of their sources, and Adam minimises the loss
L_F. The result is the optimum of the loss, so losses can be compared in minutes and without the randomness of training.
The crops are used twice, the second time at a quarter of their levels, as at night.

It writes one row for each loss: metrics (protocol definition), "background" (w = 0) relative to the visible image, "hot"
pixels relative to the infrared image, and "lift", by how many gray levels the dimmed results are brighter than the mean
of the brighter source. The file is replaced, loss by loss.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset import PairDataset, named_pairs
from images import DataError
from loss import FrequencyContrastiveLoss, FusionLoss, LuminanceLoss, SSIMLoss, above_deviation, adaptive_weight
from measures import evaluate
from measures.tables import aligned
from pipeline import PAIR_ERRORS
from support.console import INTERRUPTED, complain, failed, noted, positive
from support.console import run as run_command
from support.outputs import as_csv, check_place, making, write_atomically
from support.pairing import spread
from support.records import command_line, commit

METRICS = ("EN", "SF", "SD", "CC", "SCD", "VIF")
DIMMED = 0.25       # factor of the dimmed crops


def contrast_recipe(lambda_3: float, **contrastive: str) -> FusionLoss:
    """L_F of the contrast recipe with this weight of the luminance term and these options of L_c."""
    return FusionLoss(FrequencyContrastiveLoss(weight="plus", **contrastive), SSIMLoss(7, weighted=True, whole=True),
                      luminance=LuminanceLoss(), lambda_3=lambda_3)


LOSSES = {
    "paper": FusionLoss(FrequencyContrastiveLoss(), SSIMLoss()),
    "paper, w with 1 + S": FusionLoss(FrequencyContrastiveLoss(weight="plus"), SSIMLoss()),
    "paper, spatial L_c": FusionLoss(FrequencyContrastiveLoss("spatial"), SSIMLoss()),
    "w with 1 + S, weighted windows": FusionLoss(FrequencyContrastiveLoss(weight="plus"), SSIMLoss(7, weighted=True)),
    "the same and the whole image": contrast_recipe(0),
    "the same and luminance, lambda_3 1": contrast_recipe(1),
    "the same and luminance, lambda_3 2 (recipe contrast)": contrast_recipe(2),
    "the same and luminance, lambda_3 4": contrast_recipe(4),
    "the same and luminance, lambda_3 8": contrast_recipe(8),
    "recipe contrast, spatial L_c": contrast_recipe(2, domain="spatial"),
}


def central_crops(data: str, count: int, side: int) -> list[Tensor]:
    """Infrared and visible luminance of training pairs spread over the list, each (count, 1, side, side) in [0, 1].

    With fewer than `count` pairs, all of them are used. Raises DataError, also for an image below `side`.
    """
    pairs = named_pairs("roadscene", data, "train")
    crops: list[list[Tensor]] = [[], []]
    chosen = PairDataset(spread(pairs, count))
    for name, images in zip(chosen.names, chosen.items):
        height, width = images[0].shape[1:]
        if min(height, width) < side:
            raise DataError(f"--side {side}: {name} has only {width}x{height} pixels; give a smaller side")
        for kind, image in zip(crops, images):
            top, left = (height - side) // 2, (width - side) // 2
            kind.append(torch.from_numpy(image[:, top:top + side, left:left + side]))
    return [torch.stack(kind).float() / 255 for kind in crops]


def optimum(loss: FusionLoss, ir: Tensor, vis_y: Tensor, steps: int) -> Tensor:
    """The result of `steps` steps of Adam from the average of the sources, with the shape of `ir`, in [0, 1]."""
    logits = torch.logit(((ir + vis_y) / 2).clamp(0.01, 0.99)).requires_grad_()
    optimiser = torch.optim.Adam([logits], 0.05)
    for step in trange(steps, leave=False):
        optimiser.param_groups[0]["lr"] = 0.05 if step < 0.7 * steps else 0.015
        optimiser.zero_grad()
        loss(logits.sigmoid(), None, ir, vis_y)[0].backward()
        optimiser.step()
    return logits.sigmoid().detach()


def score(fused: Tensor, ir: Tensor, vis_y: Tensor) -> dict[str, float]:
    """Means of the measures over the crops. In each tensor, the second half are the dimmed crops."""
    half = len(ir) // 2
    levels = [np.uint8(x[:half, 0].mul(255).round().numpy()) for x in (fused, ir, vis_y)]
    rows = [evaluate(*images, names=METRICS) for images in zip(*levels)]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in METRICS}
    rest, hot = 1 - adaptive_weight(ir, vis_y, plus=True)[:half], above_deviation(ir)[:half]
    means["background"] = ((fused[:half] * rest).sum() / (vis_y[:half] * rest).sum()).item()
    means["hot"] = ((fused[:half] * hot).sum() / (ir[:half] * hot).sum()).item()
    brighter = torch.maximum(ir[half:].mean((1, 2, 3)), vis_y[half:].mean((1, 2, 3)))
    means["lift"] = 255 * (fused[half:].mean((1, 2, 3)) - brighter).mean().item()
    return {name: round(value, 4) for name, value in means.items()}


def measured(args: argparse.Namespace) -> Iterator[dict]:
    """Yield the row of each loss, after that of the average of the sources. Raises DataError."""
    ir, vis_y = (torch.cat([x, DIMMED * x]) for x in central_crops(args.data, args.count, args.side))
    yield {"loss": "average of the sources"} | score((ir + vis_y) / 2, ir, vis_y)
    for name, loss in LOSSES.items():
        yield {"loss": name} | score(optimum(loss, ir, vis_y, args.steps), ir, vis_y)


def table(rows: Sequence[dict]) -> str:
    """The measures of the rows as an aligned table."""
    return aligned([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/pixels.py [options]")
    parser.add_argument("--data", default="data/RoadScene", help="folder of RoadScene")
    parser.add_argument("--count", type=positive, default=6, help="number of crops (default: 6)")
    parser.add_argument("--side", type=positive, default=128, help="side of a crop, pixels (default: 128)")
    parser.add_argument("--steps", type=positive, default=60, help="steps of Adam (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("runs/pixels.csv"), metavar="FILE",
                        help="output file, which is replaced (default: runs/pixels.csv)")
    return parser


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    about = {"count": args.count, "side": args.side, "steps": args.steps, "commit": commit(),
             "command": command_line("tools/pixels.py", argv)}
    rows: list[dict] = []
    try:
        with making([args.out.parent]):
            check_place("--out", args.out)
            for row in measured(args):
                rows.append(row)
                write_atomically(args.out, as_csv([*row, *about], [row | about for row in rows]))
    except PAIR_ERRORS as error:
        return failed("pixels.py", error)
    except KeyboardInterrupt:
        complain("pixels.py: interrupted" + (f"; the rows of finished losses are in {args.out}" if rows else ""))
        return INTERRUPTED
    finally:
        if rows:        # also those before Ctrl-C or an error
            print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
