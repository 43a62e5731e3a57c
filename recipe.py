"""Options of train.py, and the recipes that give them their values.

The names in RECIPE decide the result of a run. A recipe is a JSON file with a value for each; checkpoints store theirs.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from dataset import DATASETS, positive
from net import GLOBAL_BRANCHES

RECIPES = Path(__file__).resolve().parent / "recipes"
TRAINING_SETS = tuple(name for name, layout in DATASETS.items() if "train" in layout.splits)

# What decides the result. A recipe file has a value for each; checkpoints store them, and --resume goes on with them.
RECIPE = ("dataset", "seed", "epochs", "steps", "max_minutes", "batch", "crop", "crops", "fixed_crops", "flips", "dim",
          "lr", "schedule", "clip", "channels", "stages", "sharing", "global_branch", "cpm", "prior",
          "lambda_1", "saliency", "saliency_form", "weight", "contrast", "contrast_domain",
          "lambda_2", "ssim_window", "ssim_weighted", "ssim_whole", "lambda_3", "amp", "val_every")
PLACES = ("data", "ir", "vis", "init")      # stored too, but they may move
VERSION = 3     # of what the recipe means; one more when the same options begin to train something else


class TrainingError(Exception):
    """Training cannot go on; the message says what to change."""


def recipe(args: argparse.Namespace) -> dict:
    return {key: getattr(args, key) for key in RECIPE} | {
        key: None if getattr(args, key) is None else str(getattr(args, key)) for key in PLACES}


def whole(text: str) -> int:
    """0 or a positive whole number, for argparse."""
    return 0 if text == "0" else positive(text)


def odd(text: str) -> int:
    """An odd number from 1, for argparse."""
    value = positive(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is even; a window has a middle")
    return value


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter)
    flag = argparse.BooleanOptionalAction

    main = parser.add_argument_group("main")
    main.add_argument("--recipe", default="paper", metavar="NAME|FILE", help="defaults of all options below: paper, "
                      "contrast, medical (in recipes/), or a JSON file such as a best.json of an earlier run")
    main.add_argument("--data", default="data/RoadScene", help="folder of the data set")
    main.add_argument("--dataset", type=str.lower, choices=TRAINING_SETS, help="its layout")
    main.add_argument("--ir", metavar="DIR", help="train on your own two folders: infrared ...")
    main.add_argument("--vis", metavar="DIR", help="... and visible, matched by file name")
    main.add_argument("--out", type=Path, default=Path("checkpoints"), help="where checkpoints and the log go")
    main.add_argument("--resume", action="store_true", help="go on from OUT/last.pth, with the recipe stored in it")
    main.add_argument("--init", metavar="PTH", help="start from these weights: fine-tune, or continue with another "
                      "recipe (a last.pth has the auxiliary decoder's too)")
    main.add_argument("--seed", type=int, help="of the weights and of the crops")

    length = parser.add_argument_group("length (the learning rate's schedule scales with it)")
    length.add_argument("--epochs", type=positive, help="passes of --crops crops; the paper does not print their "
                        "number, 100 fits its schedule")
    length.add_argument("--steps", type=whole, help="optimiser steps in place of epochs; 0: off")
    length.add_argument("--max-minutes", type=float, help="end after this time; 0: no bound. Such a run cannot be "
                        "repeated exactly: its learning rate depends on the machine's speed")

    crops = parser.add_argument_group("crops and optimisers")
    crops.add_argument("--batch", type=positive, help="crops a step, of all processes together")
    crops.add_argument("--crop", type=int, help="side of a crop, pixels")
    crops.add_argument("--crops", type=positive, help="crops an epoch")
    crops.add_argument("--fixed-crops", action=flag, help="the same crops in each epoch, cut once; no: new ones "
                       "each epoch")
    crops.add_argument("--flips", action=flag, help="mirror crops at random")
    crops.add_argument("--dim", type=float, help="share of sources that are darkened, by 0.1 to 1; 0: none, as "
                       "the paper")
    crops.add_argument("--lr", type=float, help="initial learning rate of both Adam optimisers")
    crops.add_argument("--schedule", choices=("step", "cosine"), help="step: halved at each fifth of the run")
    crops.add_argument("--clip", type=float, help="bound of the gradient's norm; 0: off, as the paper")

    network = parser.add_argument_group("network")
    network.add_argument("--channels", type=int, help="width")
    network.add_argument("--stages", type=positive, help="iterations n (Table 1)")
    network.add_argument("--sharing", choices=("convolutions", "none"), help="what the iterations share")
    network.add_argument("--global-branch", choices=tuple(GLOBAL_BRANCHES), help="transformer: Table 3, case 6")
    network.add_argument("--cpm", action=flag, help="no: Table 3, case 7")
    network.add_argument("--prior", action=flag, help="residual branch, and with it L_SS; no: Table 3, case 8")

    loss = parser.add_argument_group("loss")
    loss.add_argument("--lambda-1", type=float, help="weight of the texture term of Eq. 6")
    loss.add_argument("--saliency", action=flag, help="L_SS and the auxiliary decoder; no: Table 3, case 5")
    loss.add_argument("--saliency-form", choices=("l2", "mean"), help="norms of Eq. 6 and 7: l2 as printed, or means")
    loss.add_argument("--weight", choices=("printed", "adaptive", "none"), help="w of Eq. 9: as printed; with 1 + S, "
                      "which finds the hot targets; none: Table 3, case 4")
    loss.add_argument("--contrast", action=flag, help="no: l1 norm without contrast, Table 3, case 2")
    loss.add_argument("--contrast-domain", choices=("frequency", "spatial"), help="of L_c; spatial: Table 3, case 3")
    loss.add_argument("--lambda-2", type=float, help="weight of L_s in Eq. 8 (Table 2); 0: Table 3, case 1")
    loss.add_argument("--ssim-window", type=odd, help="side of L_s's windows, pixels, odd")
    loss.add_argument("--ssim-weighted", action=flag, help="L_s's windows compare contrast and structure, and weigh "
                      "the sources by their variance; no: SSIM, as Eq. 13 prints")
    loss.add_argument("--ssim-whole", action=flag, help="L_s also over the whole crop; no: as Eq. 13 prints")
    loss.add_argument("--lambda-3", type=float, help="weight of the luminance term, which is ours; 0: off, as "
                      "the paper")

    performance = parser.add_argument_group("performance")
    performance.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                             help="cuda, cuda:1, cpu")
    performance.add_argument("--amp", action=flag, help="bfloat16, for GPUs from NVIDIA's Ampere on and CPUs with "
                             "AVX-512 BF16 or AMX; the FFT, decoder and losses stay in float32")
    performance.add_argument("--workers", type=int, default=0, help="loader processes; the images are in memory, "
                             "so 0 is seldom slower")
    performance.add_argument("--val-every", type=whole, help="epochs between validations; 0: never")
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def read_recipe(name: str) -> dict:
    """Options of a recipe: a name in recipes/, or a JSON file with a "recipe", as train.py writes it.

    Raises TrainingError.
    """
    path = Path(name)
    if path.suffix != ".json":
        path = RECIPES / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.json")))
            raise TrainingError(f"--recipe {name}: choose from {known}, or give a JSON file")
    try:
        stored = json.loads(path.read_text())["recipe"]
        options = {key: stored[key] for key in RECIPE}
    except OSError as error:
        raise TrainingError(f"--recipe {path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"--recipe {path}: not a recipe of this train.py ({type(error).__name__}: {error}); "
                            "recipes/paper.json shows what one holds") from None
    unknown = stored.keys() - {*RECIPE, *PLACES}
    if unknown:
        raise TrainingError(f"--recipe {path}: unknown option {', '.join(sorted(unknown))}")
    return options


def parse(argv: Sequence[str] | None, description: str | None = None) -> tuple[argparse.Namespace, dict | None]:
    """Options, and the state to resume from. A stored recipe replaces the defaults; contradicting it is an error."""
    parser = build_parser(description)
    parser.set_defaults(**read_recipe("paper"))     # what --help shows
    args = parser.parse_args(argv)
    path = args.out / "last.pth"
    if not args.resume:
        parser.set_defaults(**read_recipe(args.recipe))
        args = parser.parse_args(argv)
        if (args.ir is None) != (args.vis is None):
            parser.error("--ir and --vis go together")
        if args.ir:
            args.data = args.dataset = None
        elif not args.dataset:
            raise TrainingError(f"--recipe {args.recipe}: it names no data set; give --ir and --vis, or --dataset")
        args.saliency = args.saliency and args.prior        # M' is decoded from the residual features
        if path.exists():
            raise TrainingError(f"{path}: a run is there already; go on with --resume, or start anew with another "
                                "--out")
        return args, None
    if not path.is_file():
        raise TrainingError(f"{path}: nothing to resume; start without --resume, or name the run's folder with --out")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, version = state["recipe"], state["version"]
    except Exception as error:      # torch raises many types; each would hide the file's name
        raise TrainingError(f"{path}: not a checkpoint of this train.py ({type(error).__name__}); "
                            "it cannot be resumed") from None
    if version != VERSION:
        raise TrainingError(f"{path}: of another version of train.py, in which the same options train something else; "
                            "it cannot be resumed, but --init takes its weights")
    parser.set_defaults(**stored, recipe=None)
    args = parser.parse_args(argv)
    if args.recipe:
        raise TrainingError("--recipe goes without --resume, which goes on with the recipe that is stored in last.pth")
    changed = [f"{key} {stored[key]} -> {getattr(args, key)}" for key in RECIPE if getattr(args, key) != stored[key]]
    if changed:
        raise TrainingError(f"{path} was trained with another recipe ({'; '.join(changed)}). "
                            "Drop these options, or start a new run with another --out")
    return args, state
