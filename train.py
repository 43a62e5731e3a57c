"""Train RPFNet.

    python train.py --data data/RoadScene                           the paper's recipe (recipes/paper.json)
    python train.py --data data/RoadScene --recipe contrast         that of the default weights
    python train.py --data data/RoadScene --amp --steps 4240        shorter, in bfloat16: options override the recipe
    python train.py --data data/RoadScene --resume                  go on after Ctrl-C, a kill or a crash
    torchrun --nproc_per_node=4 train.py --data data/RoadScene      the same run on four GPUs

Writes to --out: last.pth (everything to resume), best.pth and best.json (weights and recipe, for
RPFNet.from_pretrained and test.py), log.csv (one row an epoch).
"""
from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import json
import math
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
from dataset import (
    DATASETS,
    CropDataset,
    PairDataset,
    crop_batches,
    match_pairs,
    named_pairs,
    positive,
)
from images import DataError, to_image, write_atomically
from layers import ExactStatistics
from loss import FrequencyContrastiveLoss, FusionLoss, LuminanceLoss, SaliencyStructureLoss, SSIMLoss
from net import GLOBAL_BRANCHES, AuxiliaryDecoder, RPFNet
from runtime import check_device, keep_freed_memory, team

RECIPES = Path(__file__).resolve().parent / "recipes"
VALIDATION_METRICS = ("EN", "SF", "SD", "CC", "SCD", "VIF")
HALVINGS = 5            # lr is halved every 20 of 100 epochs: at each fifth of a run
TRAINING_SETS = tuple(name for name, layout in DATASETS.items() if "train" in layout.splits)
CHECK_EVERY = 50        # steps between looks at the loss; each look waits for the GPU
SAVE_EVERY = 300        # seconds
FLAT = 1e-4             # largest Sobel magnitude of M' under which it has no edges left; the loss keeps it above


class TrainingError(Exception):
    """Training cannot go on; the message says what to change."""


# ---------------------------------------------------------------------------------------------
# Options

# What decides the result. A recipe file has a value for each; the checkpoint stores them, and --resume goes on with them.
RECIPE = ("dataset", "seed", "epochs", "steps", "max_minutes", "batch", "crop", "crops", "fixed_crops", "flips", "dim",
          "lr", "schedule", "clip", "channels", "stages", "sharing", "global_branch", "cpm", "prior",
          "lambda_1", "saliency", "saliency_form", "weight", "contrast", "contrast_domain",
          "lambda_2", "ssim_window", "ssim_weighted", "ssim_whole", "lambda_3", "amp", "val_every")
PLACES = ("data", "ir", "vis", "init")      # stored too, but they may move
VERSION = 3     # of what the recipe means; one more when the same options begin to train something else


def whole(text: str) -> int:
    """0 or a positive whole number, for argparse."""
    return 0 if text == "0" else positive(text)


def odd(text: str) -> int:
    """An odd number from 1, for argparse."""
    value = positive(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is even; a window has a middle")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_HelpFormatter)
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
    main.add_argument("--init", metavar="PTH", help="start from these weights: fine-tune, or continue with another recipe "
                      "(a last.pth has the auxiliary decoder's too)")
    main.add_argument("--seed", type=int, help="of the weights and of the crops")

    length = parser.add_argument_group("length (the learning rate's schedule scales with it)")
    length.add_argument("--epochs", type=positive, help="passes of --crops crops; the paper does not print their number, "
                        "100 fits its schedule")
    length.add_argument("--steps", type=whole, help="optimiser steps in place of epochs; 0: off")
    length.add_argument("--max-minutes", type=float, help="end after this time; 0: no bound. Such a run cannot be "
                        "repeated exactly: its learning rate depends on the machine's speed")

    crops = parser.add_argument_group("crops and optimisers")
    crops.add_argument("--batch", type=positive, help="crops a step, of all processes together")
    crops.add_argument("--crop", type=int, help="side of a crop, pixels")
    crops.add_argument("--crops", type=positive, help="crops an epoch")
    crops.add_argument("--fixed-crops", action=flag, help="the same crops in each epoch, cut once; no: new ones each epoch")
    crops.add_argument("--flips", action=flag, help="mirror crops at random")
    crops.add_argument("--dim", type=float, help="share of sources that are darkened, by 0.1 to 1; 0: none, as the paper")
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
    loss.add_argument("--ssim-weighted", action=flag, help="L_s's windows compare contrast and structure, and weigh the "
                      "sources by their variance; no: SSIM, as Eq. 13 prints")
    loss.add_argument("--ssim-whole", action=flag, help="L_s also over the whole crop; no: as Eq. 13 prints")
    loss.add_argument("--lambda-3", type=float, help="weight of the luminance term, which is ours; 0: off, as the paper")

    performance = parser.add_argument_group("performance")
    performance.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, cpu")
    performance.add_argument("--amp", action=flag, help="bfloat16, for GPUs from NVIDIA's Ampere on and CPUs with "
                             "AVX-512 BF16 or AMX; the FFT, decoder and losses stay in float32")
    performance.add_argument("--workers", type=int, default=0, help="loader processes; the images are in memory, "
                             "so 0 is seldom slower")
    performance.add_argument("--val-every", type=whole, help="epochs between validations; 0: never")
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def read_recipe(name: str) -> dict:
    """Options of a recipe: a name in recipes/, or a JSON file with a "recipe", as train.py writes it. Raises TrainingError."""
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


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict | None]:
    """Options, and the state to resume from. A stored recipe replaces the defaults; contradicting it is an error."""
    parser = build_parser()
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
            raise TrainingError(f"{path}: a run is there already; go on with --resume, or start anew with another --out")
        return args, None
    if not path.is_file():
        raise TrainingError(f"{path}: nothing to resume; start without --resume, or name the run's folder with --out")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, version = state["recipe"], state["version"]
    except Exception as error:      # torch raises many types; each would hide the file's name
        raise TrainingError(f"{path}: not a checkpoint of this train.py ({type(error).__name__}); it cannot be resumed") from None
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


# ---------------------------------------------------------------------------------------------
# Data


def load_data(args: argparse.Namespace) -> tuple[PairDataset, PairDataset | None]:
    """Training and validation pairs; no validation for data without a validation split."""
    progress = team.rank == 0
    if args.ir:
        return PairDataset(match_pairs(args.ir, args.vis), progress), None
    train = PairDataset(named_pairs(args.dataset, args.data, "train"), progress)
    has_val = "val" in DATASETS[args.dataset].splits and args.val_every
    return train, PairDataset(named_pairs(args.dataset, args.data, "val"), progress) if has_val else None


def to_unit(image: Tensor, device: str) -> Tensor:
    """uint8 to float in [0, 1], on the device (a quarter of the bytes travels)."""
    return image.to(device, non_blocking=True).float().div_(255)


# ---------------------------------------------------------------------------------------------
# Training


def build_loss(args: argparse.Namespace) -> FusionLoss:
    return FusionLoss(
        FrequencyContrastiveLoss(args.contrast_domain, args.contrast, args.weight),
        SSIMLoss(args.ssim_window, args.ssim_weighted, args.ssim_whole) if args.lambda_2 else None,
        SaliencyStructureLoss(args.lambda_1, args.saliency_form) if args.saliency else None,
        LuminanceLoss() if args.lambda_3 else None, args.lambda_2, args.lambda_3)


def build_network(args: argparse.Namespace) -> RPFNet:
    return RPFNet(args.channels, args.stages, args.sharing, args.global_branch, args.cpm, args.prior)


def learning_rate(initial: float, schedule: str, progress: float) -> float:
    """Learning rate at progress in [0, 1] of the run."""
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return initial * 0.5 ** min(int(progress * HALVINGS), HALVINGS - 1)


class Trainer:
    """The networks, their two optimisers, and where the run stands."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(args.seed)
        # The layout that tensor cores like, and CPUs too; it changes no value.
        self.model = build_network(args).to(self.device, memory_format=torch.channels_last)
        self.decoder = AuxiliaryDecoder(args.channels).to(self.device, memory_format=torch.channels_last)
        self.wrapped = in_parallel(self.model, self.decoder) if team.world > 1 else None
        self.loss = build_loss(args)
        self.optimisers = [torch.optim.Adam(net.parameters(), args.lr) for net in (self.model, self.decoder)]
        self.per_epoch = math.ceil(args.crops / args.batch)
        self.total = args.steps or args.epochs * self.per_epoch
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.sums: dict[str, Tensor] = {}       # of this epoch's terms, over the crops of this process
        self.history: list[dict] = []           # the log's rows
        self.edge: Tensor | None = None         # M_edge of the last step: an epoch's mean would hide a collapse in it
        self.finished = False
        self._tick = time.monotonic()

    # --- one step ---

    def train_step(self, ir: Tensor, vis_y: Tensor, size: int | None = None) -> None:
        """One step of both optimisers on a batch of (B, 1, H, W) in [0, 1].

        Args:
            size: crops of the step in all processes together, of which ir and vis_y are this one's share.
        """
        model, decoder = self.wrapped or (self.model, self.decoder)
        size = size or len(ir)
        own = len(team.share(range(size)))       # 0 where a last batch is too small: the crop is then a stand-in
        rate = learning_rate(self.args.lr, self.args.schedule, self.progress)
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        fused, m_prime = self._forward(model, decoder, ir, vis_y)
        total, terms = self.loss(fused, m_prime, ir, vis_y)
        # The processes' gradients are averaged; so weighted, to the gradient of the mean over all `size` crops.
        (total * (own * team.world / size)).backward()
        for net, optimiser in zip((self.model, self.decoder), self.optimisers):
            if self.args.clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), self.args.clip)
            optimiser.step()
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach() * own
        self.edge = terms["M_edge"].detach() if "M_edge" in terms else None
        self.step += 1
        self.finished = self.progress >= 1

    def _forward(self, model: nn.Module, decoder: nn.Module, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The fused image and M'."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp):
            if not self.args.saliency:
                return model(ir, vis_y), None
            fused, features = model(ir, vis_y, return_features=True)
            return fused, decoder(features[-1].residual)

    @torch.no_grad()
    def exact_statistics(self, crops: CropDataset) -> None:
        """BatchNorm's running statistics over the crops of the epoch, in place of an average over the last few batches.

        Training does not depend on them. Several processes on CPUs normalise each its own share of a batch, also here.
        """
        statistics = ExactStatistics(self.model, self.decoder)
        batches = list(self.batches(len(self.history)))
        own = [team.share(numbers) or numbers[:1] for numbers in batches]
        loader = DataLoader(crops, batch_sampler=own)
        for (ir, vis), numbers in tqdm(zip(loader, batches), total=len(batches), desc="statistics", unit="batch",
                                       leave=False, disable=team.rank > 0):
            self._forward(self.model, self.decoder, to_unit(ir, self.device), to_unit(vis, self.device))
            statistics.add(len(team.share(numbers)))
        statistics.store(team.sum)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Crop numbers of an epoch's steps, from step `start` of it."""
        fixed = self.args.seed if self.args.fixed_crops else None
        return crop_batches(epoch, self.args.crops, self.args.batch, start, fixed)

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        by_time = self.clock() / (60 * self.args.max_minutes) if self.args.max_minutes else 0.0
        return max(self.step / self.total, by_time)

    def clock(self) -> float:
        """Seconds of training so far, earlier parts of a resumed run included; in several processes, as last agreed."""
        if team.world == 1:
            self._advance()
        return self.seconds

    def _advance(self) -> None:
        now = time.monotonic()
        self.seconds, self._tick = self.seconds + now - self._tick, now

    def agree(self, stop: Stop) -> None:
        """Between two steps: rank 0's clock becomes everybody's, and a signal to one process stops all.

        What they decide by (learning rate, end, when to save) stays the same in all of them until the next time.
        """
        if team.world > 1:
            self._advance()
            common = torch.tensor([0.0 if team.rank else self.seconds, stop.received], dtype=torch.float64)
            distributed.all_reduce(common, distributed.ReduceOp.MAX)
            self.seconds, stop.agreed = float(common[0]), int(common[1])
            self.finished = self.progress >= 1

    def means(self) -> dict[str, float]:
        """This epoch's terms so far, a mean over its crops. Raises TrainingError when training has failed."""
        done = min((self.step - len(self.history) * self.per_epoch) * self.args.batch, self.args.crops)
        values = {name: float(value) / done for name, value in over_all(self.sums).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(f"step {self.step}: {', '.join(bad)} is not finite; {self._remedy}")
        if self.edge is not None and float(over_all({"M_edge": self.edge})["M_edge"]) / team.world < FLAT:
            raise TrainingError(f"step {self.step}: the auxiliary decoder is saturated (M' is flat), so L_SS teaches "
                                f"nothing any more; {self._remedy}, and start again")
        return values

    @property
    def _remedy(self) -> str:
        return "lower --lr" if self.args.clip else "lower --lr, or set --clip 1"

    # --- files ---

    def save(self, write: Callable[[Path, bytes], None]) -> None:
        """Write everything that --resume needs, whole or not at all; never a state that has failed."""
        if self.sums:
            self.means()
        state = {"model": self.model.state_dict(), "config": self.model.config, "decoder": self.decoder.state_dict(),
                 "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                 "version": VERSION, "recipe": recipe(self.args), "step": self.step, "seconds": self.clock(), "best": self.best,
                 "sums": over_all(self.sums), "history": self.history}
        write(self.args.out / "last.pth", serialised(state))

    def start_from(self, path: str) -> None:
        """Take the weights of a checkpoint (the decoder's too, if it has them) and nothing else. Raises TrainingError."""
        start = RPFNet.from_pretrained(path)
        other = {key: value for key, value in start.config.items() if value != self.model.config[key]}
        if other:       # with shared stages, the weights of 5 iterations would fit a network of 3
            raise TrainingError(f"--init {path}: its network has "
                                f"{', '.join(f'{key} {value}' for key, value in other.items())}; give the same options")
        self.model.load_state_dict(start.state_dict())
        state = torch.load(path, map_location="cpu", weights_only=True)
        if "decoder" in state:
            self.decoder.load_state_dict(state["decoder"])

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.decoder.load_state_dict(state["decoder"])
        for optimiser, stored in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(stored)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        # The sums so far are rank 0's, however many processes they came from.
        self.sums = {name: torch.zeros_like(value, device=self.device) if team.rank else value.to(self.device)
                     for name, value in state["sums"].items()}
        self.history = state["history"]
        self.finished = self.progress >= 1

    def save_best(self, scores: dict[str, float]) -> None:
        """best.pth: a plain state dict; best.json: the recipe and what was measured."""
        # Iterations share convolutions: each tensor is made contiguous, and then stored, once.
        copies: dict[int, Tensor] = {}
        weights = {name: copies.setdefault(value.data_ptr(), value.contiguous())
                   for name, value in self.model.state_dict().items()}
        about = {"config": self.model.config, "version": VERSION, "recipe": recipe(self.args), "steps": self.step,
                 "minutes": round(self.clock() / 60, 1), "device": device_name(self.device), "command": self.args.command,
                 "commit": commit(), "packages": packages(), "validation": {k: round(v, 4) for k, v in scores.items()}}
        write_or_warn(self.args.out / "best.pth", serialised(weights))
        write_or_warn(self.args.out / "best.json", (json.dumps(about, indent=2) + "\n").encode())

    def write_log(self) -> None:
        columns = list(dict.fromkeys(key for row in self.history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_or_warn(self.args.out / "log.csv", text.getvalue().encode())

    # --- one epoch's end ---

    def end_epoch(self, crops: CropDataset, val: PairDataset | None) -> None:
        """Log the epoch, validate if it is due, keep the best weights."""
        number = len(self.history) + 1
        due = self.finished or val is not None and number % self.args.val_every == 0
        if due:
            self.exact_statistics(crops)
        rate = self.optimisers[0].param_groups[0]["lr"]
        row = {"epoch": number, "step": self.step, "lr": rate, "seconds": round(self.clock(), 1)} | self.means()
        if val is not None and due:
            row |= validate(self.model, self.loss, val, self.device)
            if row["val_loss"] < self.best:
                self.best = row["val_loss"]
                self.save_best({k: row[k] for k in ("val_loss", *VALIDATION_METRICS)})
        elif val is None and self.finished:
            self.save_best({})
        self.history.append(row)
        self.sums = {}
        self.write_log()
        if team.rank == 0:
            tqdm.write(f"epoch {number}: " + "  ".join(
                f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k != "seconds"))


# --- several processes (torchrun) ---


def in_parallel(*nets: nn.Module) -> list[nn.Module]:
    """The networks, so wrapped that backward() leaves the processes' mean gradient in each."""
    if next(nets[0].parameters()).device.type == "cuda":
        # In place: what it replaces are modules inside, the parameters and their names stay. There is none for CPUs,
        # where each process normalises its share of the batch by itself.
        nets = [nn.SyncBatchNorm.convert_sync_batchnorm(net) for net in nets]
    return [nn.parallel.DistributedDataParallel(net) for net in nets]


def over_all(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each sum over all processes."""
    if team.world == 1 or not sums:
        return sums
    values = torch.stack(list(sums.values()))
    distributed.all_reduce(values)
    return dict(zip(sums, values))


# --- from the first step to the last ---


@torch.inference_mode()
def validate(model: RPFNet, loss: FusionLoss, val: PairDataset, device: torch.device) -> dict[str, float]:
    """Mean fusion loss L_F and metrics (float protocol, plain range) over whole validation pairs, eval mode."""
    model.eval()
    rows = []
    own = team.share(range(len(val)))
    for index in tqdm(own, desc="validating", unit="pair", leave=False, disable=team.rank > 0):
        ir, vis = val[index]
        inputs = [to_unit(torch.from_numpy(x[None]), device) for x in (ir, vis)]
        fused = model(*inputs)
        image = to_image(fused[0, 0].float().cpu().numpy())
        rows.append({"val_loss": loss.fusion(fused, *inputs)[0].item()} |
                    metrics.evaluate(image, ir[0], vis[0], names=VALIDATION_METRICS))
    model.train()
    rows = team.gathered(rows)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def run(trainer: Trainer, train: PairDataset, val: PairDataset | None, stop: Stop) -> None:
    """Train until the end of the schedule or until `stop` is set. All processes take the same turns here."""
    crops = CropDataset(train, trainer.args.crop, trainer.args.seed, trainer.args.flips,
                        trainer.args.dim)
    bar = tqdm(initial=trainer.step, total=trainer.total, unit="step", dynamic_ncols=True, smoothing=0.05,
               disable=team.rank > 0)
    with bar:
        while not stop:
            done = trainer.step - len(trainer.history) * trainer.per_epoch      # steps of this epoch
            if done == trainer.per_epoch or trainer.finished and done > 0:
                trainer.save(write_or_warn)         # before the validation: it takes a while
                trainer.end_epoch(crops, val)
                trainer.save(write_or_warn)
                trainer.agree(stop)
            elif trainer.finished:
                break
            else:
                train_epoch(trainer, crops, done, bar, stop)
    try:
        trainer.save(write_once)
    finally:
        if team.world > 1:
            distributed.barrier()       # torchrun ends all when one leaves with a code: not while rank 0 writes


def train_epoch(trainer: Trainer, crops: CropDataset, start: int, bar: tqdm, stop: Stop) -> None:
    """The steps of one epoch from step `start` of it, or until the run ends or is stopped."""
    args, saved = trainer.args, trainer.clock()
    batches = list(trainer.batches(len(trainer.history), start))
    own = [team.share(numbers) or numbers[:1] for numbers in batches]
    loader = DataLoader(crops, batch_sampler=own, num_workers=args.workers, pin_memory=trainer.device.type == "cuda")
    for (ir, vis), numbers in zip(loader, batches):
        trainer.train_step(to_unit(ir, trainer.device), to_unit(vis, trainer.device), len(numbers))
        trainer.agree(stop)
        bar.update()
        if trainer.step % CHECK_EVERY == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in trainer.means().items()}, refresh=False)
        if trainer.finished or stop:
            break
        if trainer.clock() - saved > SAVE_EVERY:
            trainer.save(write_or_warn)
            saved = trainer.clock()


def write_or_warn(path: Path, data: bytes) -> None:
    """In mid-run a full disk is no reason to lose the run: the older file is still whole."""
    try:
        write_once(path, data)
    except OSError as error:
        tqdm.write(f"warning: {path} not written ({error.strerror}); training goes on", file=sys.stderr)


class Stop:
    """True after Ctrl-C or SIGTERM, so that the step in hand is finished and saved; a second Ctrl-C ends at once.

    In several processes it is true when all know of it; torchrun passes signals on, maybe twice.
    """

    def __init__(self):
        self.received, self.agreed = 0, 0       # signal numbers; the second by Trainer.agree
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: object) -> None:
        if self.received and team.world == 1:
            raise KeyboardInterrupt
        self.received = number

    @property
    def signal(self) -> int:
        return self.received if team.world == 1 else self.agreed

    def __bool__(self) -> bool:
        return bool(self.signal)


# ---------------------------------------------------------------------------------------------
# Small helpers


def recipe(args: argparse.Namespace) -> dict:
    return {key: getattr(args, key) for key in RECIPE} | {
        key: None if getattr(args, key) is None else str(getattr(args, key)) for key in PLACES}


def commit() -> str:
    """The commit of this code, with a "+" where files have changed since; "unknown" without git."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=RECIPES.parent,
                              capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def packages() -> dict[str, str]:
    """Versions of what computes."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "kornia")}


def serialised(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_once(path: Path, data: bytes) -> None:
    """`write_atomically`, by one process for all."""
    if team.rank == 0:
        write_atomically(path, data)


def device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{team.world} x {name}" if team.world > 1 else name


def main(argv: Sequence[str] | None = None) -> int:
    team.join()
    keep_freed_memory()
    try:
        args, state = parse(argv)
        args.command = shlex.join(["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
        check_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        train, val = load_data(args)
        trainer = Trainer(args)
        if state:
            trainer.load(state)
        elif args.init:
            trainer.start_from(args.init)
        if team.rank == 0:
            print(f"{len(train)} training pairs, {len(val) if val else 'no'} validation pairs; "
                  f"{trainer.total} steps of {args.batch} crops on {device_name(trainer.device)}", flush=True)
        stop = Stop()
        run(trainer, train, val, stop)
    except (DataError, TrainingError, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ntrain.py: ended at once; the last save, if there was one, is {args.out / 'last.pth'}", file=sys.stderr)
        return 130
    if stop and team.rank == 0:
        print(f"stopped at step {trainer.step}; go on with: python train.py --out {args.out} --resume")
    return 128 + stop.signal if stop else 0


if __name__ == "__main__":
    sys.exit(main())
