"""Options of train.py, and recipes: JSON files with values for the options.

RECIPE lists the options that determine the result of a run. A recipe file has a value for each of them. Checkpoints
store the recipe of their run. If an older recipe lacks an option, the value of recipes/paper.json is used.
"""
from __future__ import annotations

import argparse
import reprlib
from collections.abc import Sequence
from pathlib import Path

from dataset import DATASETS, add_pattern_options, add_reading_options
from inference import MIN_SIZE
from net import GLOBAL_BRANCHES
from support.console import count, given, given_path, number, positive, printable
from support.runtime import default_device
from weights import LIMITS, in_words, load, read_json

RECIPES = Path(__file__).resolve().parent / "recipes"
TRAINING_SETS = tuple(name for name, layout in DATASETS.items() if "train" in layout.splits)

# The options that determine the result. --resume uses the values stored in the checkpoint.
RECIPE = ("dataset", "seed", "epochs", "steps", "max_minutes", "batch", "crop", "crops", "fixed_crops", "flips", "dim",
          "lamps", "lr", "schedule", "clip", "fixed_statistics", "channels", "stages", "sharing", "global_branch", "cpm", "prior",
          "lambda_1", "saliency", "saliency_form", "weight", "negatives", "contrast_domain",
          "lambda_2", "ssim_window", "ssim_weighted", "ssim_whole", "lambda_3", "teacher", "amp", "val_every")
LOSS = RECIPE[RECIPE.index("lambda_1"):RECIPE.index("teacher")]     # options that have no effect with a teacher
NO_TEACHER = "none"
READING = ("resize", "ir_range", "vis_bits")        # how images are read; None if a recipe file lacks them
# Stored as well. --resume may change them, except `init`, which only a new run uses.
PLACES = ("data", "ir", "vis", "ir_pattern", "vis_pattern", "init")
# Keys of last.pth; see Trainer.save.
STATE = ("model", "config", "decoder", "optimisers", "version", "recipe", "step", "seconds", "pairs", "best", "sums",
         "history")
# Increase this version if the same options train a different model after a change, or if an option gets another name.
VERSION = 6
LONGEST_PATH = 4096     # characters
FLAG = argparse.BooleanOptionalAction        # --name and --no-name


class TrainingError(Exception):
    """Training cannot start or continue. The message says what to change."""


# ---------------------------------------------------------------------------------------------
# Types of options, for argparse


whole = count(0, 10**9)


def fours(text: str) -> int:
    """Type of --channels: a multiple of 4, because the channel attention has a quarter of the channels."""
    value = count(*LIMITS["channels"])(text)
    if value % 4:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 4")
    return value


def odd(text: str) -> int:
    """Type of --ssim-window: an odd number of pixels from 3."""
    value = count(3, 2**13)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is even; a window has a middle")
    return value


# ---------------------------------------------------------------------------------------------
# The options


def option(name: str) -> str:
    """The option of a name in RECIPE: lambda_1 -> --lambda-1."""
    return f"--{name.replace('_', '-')}"


class _Parser(argparse.ArgumentParser):
    """Parser that also checks recipe files. If `source` is set to the file, errors are TrainingErrors that name it."""

    source: object = None

    def error(self, message: str):
        if self.source is not None:
            raise TrainingError(f"{self.source}: not a recipe of this train.py: {message.removeprefix('argument --')}")
        if message.startswith("unrecognized arguments: ") and not message.partition(": ")[2].startswith("-"):
            message += "; a folder follows its option: --out for a run (also to resume it), --data for a data set"
        super().error(message)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _main_options(parser: argparse.ArgumentParser) -> None:
    main = parser.add_argument_group("main")
    main.add_argument("--recipe", type=given, default="paper", metavar="NAME|FILE", help="recipe with the defaults of "
                      "the options below: paper, contrast, medical, small, tiny (in recipes/), or a JSON file, such as "
                      "best.json of a run")
    main.add_argument("--data", type=given, help="folder of the data set (default: "
                      "data/RoadScene, data/MSRS or data/Harvard)")
    main.add_argument("--dataset", type=str.lower, choices=TRAINING_SETS, help="name of the data set")
    main.add_argument("--ir", type=given, metavar="DIR", help="your own pairs: folder of infrared images ...")
    main.add_argument("--vis", type=given, metavar="DIR", help="... and folder of visible images, matched by file name")
    add_pattern_options(main)
    add_reading_options(main)
    main.add_argument("--out", type=given_path, default=Path("checkpoints"), help="folder for checkpoints and log")
    main.add_argument("--resume", action="store_true", help="resume from OUT/last.pth, with the recipe stored in it")
    main.add_argument("--init", type=given, metavar="PTH", help="initial weights, to fine-tune or to continue with "
                      "another recipe (last.pth also holds the auxiliary decoder)")
    main.add_argument("--seed", type=count(0, 2**64 - 1), help="seed of the weights and of the crops")


def _length_options(parser: argparse.ArgumentParser) -> None:
    length = parser.add_argument_group("length (the learning rate schedule scales with it)")
    length.add_argument("--epochs", type=positive, help="number of epochs of --crops crops; the paper does not "
                        "print it, and 100 fits its schedule")
    length.add_argument("--steps", type=whole, help="number of optimiser steps, in place of epochs; 0: off")
    length.add_argument("--max-minutes", type=number(0), help="end after this time; 0: no limit. Such a run is not "
                        "reproducible: its learning rate depends on the speed of the machine")


def _crop_options(parser: argparse.ArgumentParser) -> None:
    crops = parser.add_argument_group("crops and optimisers")
    crops.add_argument("--batch", type=count(1, 2**16), help="crops in a step, over all processes")
    crops.add_argument("--crop", type=count(MIN_SIZE, 2**13), help="side of a crop, pixels")
    crops.add_argument("--crops", type=count(1, 10**7), help="crops in an epoch. A run of a few --steps also ends with a "
                       "pass over all of them, for the exact BatchNorm statistics; few --crops make it short")
    crops.add_argument("--fixed-crops", action=FLAG, help="the same crops in each epoch; --no-fixed-crops: new ones")
    crops.add_argument("--flips", action=FLAG, help="flip crops at random")
    crops.add_argument("--dim", type=number(0, 1), help="probability that a source of a crop is darkened at random, as "
                       "at night; 0: never, as in the paper")
    crops.add_argument("--lamps", type=number(0, 1), metavar="SHARE", help="share of the darkened sources whose "
                       "brightest places become white, as lamps in a night image")
    crops.add_argument("--lr", type=number(0, above=True), help="initial learning rate of both Adam optimisers")
    crops.add_argument("--schedule", choices=("step", "cosine"), help="learning rate; step: halved after each fifth of "
                       "the run; cosine: falls to 0 along half a cosine")
    crops.add_argument("--clip", type=number(0), help="maximum norm of the gradient; 0: no clipping, as in the paper")
    crops.add_argument("--fixed-statistics", type=number(0, 1), metavar="SHARE", help="last share of the steps, in "
                       "which the BatchNorm statistics are fixed, so that training and inference normalise alike; "
                       "0: none, as in the paper; not with --max-minutes")


def _network_options(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--channels", type=fours, help="number of feature channels, a multiple of 4")
    network.add_argument("--stages", type=count(*LIMITS["stages"]), help="number of iterations n (Table 1)")
    network.add_argument("--sharing", choices=("convolutions", "none"), help="what the iterations share")
    network.add_argument("--global-branch", choices=tuple(GLOBAL_BRANCHES), help="transformer: Table 3, case 6")
    network.add_argument("--cpm", action=FLAG, help="the cross promotion module (CPM); --no-cpm: Table 3, case 7")
    network.add_argument("--prior", action=FLAG, help="the residual branch and L_SS; --no-prior: Table 3, case 8")


def _loss_options(parser: argparse.ArgumentParser) -> None:
    loss = parser.add_argument_group("loss")
    loss.add_argument("--lambda-1", type=number(0), help="weight of the texture term of Eq. 6")
    loss.add_argument("--saliency", action=FLAG, help="L_SS and the auxiliary decoder; --no-saliency: Table 3, case 5")
    loss.add_argument("--saliency-form", choices=("l2", "rms", "mean"), help="norms of Eq. 6 and 7: l2 as "
                      "printed; rms: l2 divided by the square root of the number of pixels; mean: means")
    loss.add_argument("--weight", choices=("printed", "plus", "none"), help="w of Eq. 9 in L_c; printed: with 1 - S as in "
                      "the paper; plus: with 1 + S, which covers the hot targets; none: Table 3, case 4. The luminance term "
                      "always uses plus")
    loss.add_argument("--negatives", action=FLAG, help="negative pairs in L_c; --no-negatives: l1 norm only, Table 3, case 2")
    loss.add_argument("--contrast-domain", choices=("frequency", "spatial"), help="domain of L_c; spatial: Table 3, "
                      "case 3")
    loss.add_argument("--lambda-2", type=number(0), help="weight of L_s in Eq. 8 (Table 2); 0: Table 3, case 1")
    loss.add_argument("--ssim-window", type=odd, help="side of the windows of L_s, pixels, odd, from 3")
    loss.add_argument("--ssim-weighted", action=FLAG, help="L_s compares contrast and structure, and each window "
                      "weights the sources by their variance; --no-ssim-weighted: SSIM, as Eq. 13 prints")
    loss.add_argument("--ssim-whole", action=FLAG, help="L_s also over the whole crop; --no-ssim-whole: windows only, as Eq. 13 "
                      "prints")
    loss.add_argument("--lambda-3", type=number(0), help="weight of the luminance term, which is ours; 0: off, as in "
                      "the paper")
    loss.add_argument("--teacher", type=given, metavar="NAME|FILE", help="distillation, for small networks: the loss "
                      "is the distance to the output of these weights. Not allowed together with the other loss "
                      "options; none: off")


def _performance_options(parser: argparse.ArgumentParser) -> None:
    performance = parser.add_argument_group("performance")
    performance.add_argument("--device", type=given, default=default_device(), help="cuda, cuda:1 or cpu")
    performance.add_argument("--amp", action=FLAG, help="bfloat16, for NVIDIA GPUs from Ampere on and CPUs with "
                             "AVX-512 BF16, AMX or ARM BF16, ignored on others; the spectral branch, the last convolution, the "
                             "decoder and the losses stay in float32")
    performance.add_argument("--workers", type=count(0, 256), default=0, help="data loader processes; the images are "
                             "in memory, so 0 is usually as fast")
    performance.add_argument("--val-every", type=whole, help="epochs between validations; 0: no validation")


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The parser of train.py. The options that a recipe sets have no default."""
    parser = _Parser(description=description, formatter_class=_HelpFormatter, usage="python train.py [options]")
    for add_options in (_main_options, _length_options, _crop_options, _network_options, _loss_options,
                        _performance_options):
        add_options(parser)
    return parser


def recipe(args: argparse.Namespace) -> dict:
    """The options that a checkpoint stores: RECIPE, READING, and PLACES as strings or None."""
    return {key: getattr(args, key) for key in (*RECIPE, *READING)} | {
        key: None if getattr(args, key) is None else str(getattr(args, key)) for key in PLACES}


# ---------------------------------------------------------------------------------------------
# Recipes


def read_recipe(name: str) -> dict:
    """Read a recipe: {option: value} for all of RECIPE and READING.

    Args:
        name: a name in recipes/, or a JSON file with the key "recipe", as train.py writes it.
    Raises:
        TrainingError: no such recipe, or a file that is not valid.
    """
    path = Path(name)
    if path.suffix != ".json":
        path = RECIPES / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.json")))
            raise TrainingError(f"--recipe {printable(name)}: choose from {known}, or give a JSON file")
    try:
        content = read_json(path)
    except OSError as error:
        raise TrainingError(f"--recipe {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise TrainingError(f"--recipe {error}") from None
    if "recipe" not in content:
        raise TrainingError(f"--recipe {path}: not a recipe of this train.py: \"recipe\" is missing; "
                            "recipes/paper.json shows what one holds")
    if not is_current(content.get("version")):
        remedy = ("take a recipe from recipes/ and give the options that differ" if "version" in content else
                  f"it has no \"version\"; add \"version\": {VERSION} if it was written for this train.py")
        raise TrainingError(f"--recipe {path}: of another version of train.py, in which the same options train "
                            f"something else; {remedy}")
    stored = completed(content["recipe"], f"--recipe {path}")
    return {key: stored[key] for key in (*RECIPE, *READING)}


def dropped_init(args: argparse.Namespace) -> str | None:
    """The --init of the run whose JSON file is the recipe, if this run does not start from given weights."""
    if args.init or not args.recipe or Path(args.recipe).suffix != ".json":
        return None
    return read_json(Path(args.recipe))["recipe"].get("init")


def completed(stored: object, source: str) -> dict:
    """Check a recipe from a file and add missing values: {option: value} for RECIPE, READING and PLACES.

    Options that are missing get the value of recipes/paper.json. For an option that was added after the file was
    written, this does not change the meaning of the recipe.

    Args:
        stored: content of the file.
        source: name of the file, the beginning of error messages.
    Raises:
        TrainingError: unknown options, or values that an option does not accept.
    """
    if not isinstance(stored, dict):
        raise TrainingError(f"{source}: not a recipe of this train.py: \"recipe\" is {in_words(stored)}")
    unknown = [printable(str(key)) for key in stored if key not in (*RECIPE, *READING, *PLACES)]
    if unknown:
        raise TrainingError(f"{source}: its recipe has unknown options: {', '.join(unknown)[:200]}")
    for key in PLACES:
        if not isinstance(stored.get(key), str | None):
            raise TrainingError(f"{source}: {key} is {in_words(stored[key])}, where a path is expected")
    if isinstance(stored.get("dataset"), str):
        stored = stored | {"dataset": stored["dataset"].lower()}
    options = {key: stored[key] for key in (*RECIPE, *READING) if key in stored}
    _check_values(options, source)
    return {**read_json(RECIPES / "paper.json")["recipe"], **dict.fromkeys((*READING, *PLACES)), **stored}


def is_current(version: object) -> bool:
    """Whether a recipe of this version trains the same model today."""
    return type(version) is int and version == VERSION


def _check_values(options: dict, source: str) -> None:
    """Raises TrainingError for a value that its option would not accept on the command line."""
    parser, line = build_parser(), []
    parser.source = source
    for key, value in options.items():
        name = key.replace("_", "-")
        if value is None and key in ("dataset", *READING):
            continue
        if key == "ir_range" and isinstance(value, list) and len(value) == 2:
            line += ["--ir-range", *map(str, value)]
            continue
        longest = LONGEST_PATH if key == "teacher" else 100
        if not isinstance(value, bool | int | float | str) or len(str(value)) > longest:
            parser.error(f"{name} is {in_words(value)}: {reprlib.repr(value)}")
        line.append(f"--{'no-' * (value is False)}{name}{'' if isinstance(value, bool) else f'={value}'}")
    parsed = parser.parse_args(line)
    for key, value in options.items():
        if getattr(parsed, key) != value:       # for example, a number that is stored as text
            parser.error(f"{key.replace('_', '-')} is {in_words(value)}: {reprlib.repr(value)}")


# ---------------------------------------------------------------------------------------------
# From the command line to a run


def parse(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """Parse the command line.

    With --resume, the stored recipe replaces the defaults, and options that contradict it are an error.

    Raises:
        TrainingError: wrong recipes or checkpoints.
        SystemExit: options that the parser rejects.
    """
    parser = build_parser(description)
    parser.set_defaults(**read_recipe(_named_recipe(argv)))     # --help shows these defaults
    chosen = _chosen(parser, argv)
    if "resume" in chosen:
        return _resumed(parser, argv, chosen)
    return _new(parser, argv, chosen)


def _named_recipe(argv: Sequence[str] | None) -> str:
    """The recipe on the command line, whose other options may be wrong."""
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--recipe", nargs="?")
    return (early.parse_known_args(argv)[0].recipe or "").strip() or "paper"


def _chosen(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict:
    """The options that were given on the command line, without defaults."""
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), unset))
    return {key: value for key, value in vars(parser.parse_args(argv, blank)).items() if value is not unset}


def _new(parser: argparse.ArgumentParser, argv: Sequence[str] | None, chosen: dict) -> argparse.Namespace:
    args = parser.parse_args(argv)
    _check_together(parser, args, chosen)
    if args.ir:
        args.data = args.dataset = None
    elif not args.dataset:
        raise TrainingError(f"--recipe {args.recipe}: it names no data set, and its --ir and --vis are not used; give "
                            "--ir and --vis, or --dataset")
    else:
        args.data = args.data or f"data/{DATASETS[args.dataset].folder}"
    # L_SS needs the residual features (--prior). The loss with a teacher has no L_SS.
    args.saliency = args.saliency and args.prior and args.teacher == NO_TEACHER
    return args


def _check_together(parser: argparse.ArgumentParser, args: argparse.Namespace, chosen: dict) -> None:
    """Report options that contradict each other. No option is ignored without a message."""
    if (args.ir is None) != (args.vis is None):
        parser.error("--ir and --vis go together")
    if args.ir and not chosen.keys().isdisjoint(("dataset", "data")):
        parser.error("--ir and --vis name your own pairs; they go without --dataset and --data")
    if not args.ir and (args.ir_pattern or args.vis_pattern):
        parser.error("--ir-pattern and --vis-pattern go with --ir and --vis")
    if "epochs" in chosen and "steps" not in chosen and args.steps:
        parser.error(f"--epochs {args.epochs}: the recipe has --steps {args.steps}, which goes first; add --steps 0")
    if "epochs" in chosen and chosen.get("steps"):
        parser.error("--epochs goes without --steps, which is the number of steps of the whole run")
    unused = _without_effect(args)
    for name, reason in unused:
        # --no-cpm with --no-prior is allowed: --no-prior already switches the CPM off.
        if name in chosen and (chosen[name] is not False or args.teacher != NO_TEACHER):
            parser.error(f"{option(name)} has no effect: {reason}")
    if not args.saliency and "saliency" not in chosen and (
            args.prior and chosen.get("prior") or args.teacher == chosen.get("teacher") == NO_TEACHER):
        parser.error("the recipe has no L_SS, and --prior or --teacher none does not add it; give --saliency or --no-saliency")
    if args.fixed_statistics and args.max_minutes:
        of_recipe = "" if "fixed_statistics" in chosen else (
            f"; the recipe has --fixed-statistics {args.fixed_statistics:g}, so add --fixed-statistics 0")
        parser.error("--fixed-statistics goes without --max-minutes: its first step has to be known" + of_recipe)
    if args.ssim_window > args.crop and "ssim_window" not in {name for name, _ in unused}:
        parser.error(f"--ssim-window {args.ssim_window} is larger than --crop {args.crop}")


def _without_effect(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Options that have no effect together with the others, and the reason."""
    return [(name, reason) for holds, names, reason in (
        (args.teacher != NO_TEACHER, LOSS, "with --teacher, the loss is the distance to its output"),
        (not args.prior, ("saliency", "saliency_form", "lambda_1", "cpm"),
         "without --prior, there are no residual features"),
        (not args.saliency, ("saliency_form", "lambda_1"), "without --saliency, there is no L_SS"),
        (args.weight == "none", ("negatives",), "with --weight none, there are no negative pairs"),
        (not args.dim, ("lamps",), "with --dim 0, no source is darkened"),
        (args.stages == 1, ("sharing",), "one iteration shares no weights with others"),
        (args.val_every and not has_validation(args), ("val_every",), "these pairs have no validation part"),
        (not args.lambda_2, ("ssim_window", "ssim_weighted", "ssim_whole"), "with --lambda-2 0, there is no L_s"),
    ) if holds for name in names]


def has_validation(args: argparse.Namespace) -> bool:
    """Whether the training pairs belong to a data set that also has validation pairs."""
    return not args.ir and bool(args.dataset) and "val" in DATASETS[args.dataset].splits


def refuse_overwriting_a_run(out: Path) -> None:
    """Raises TrainingError if the folder holds files of an earlier run."""
    if (out / "last.pth").exists():
        raise TrainingError(f"{out / 'last.pth'}: a run is there already; continue it with --resume, or start a new "
                            "run with another --out")
    for name in ("best.pth", "best.json", "log.csv"):
        if (out / name).exists():
            raise TrainingError(f"{out / name}: of an earlier run, and would be overwritten; move it away, or choose "
                                "another --out")


def _resumed(parser: argparse.ArgumentParser, argv: Sequence[str] | None, chosen: dict) -> argparse.Namespace:
    for name in ("recipe", "init"):
        if name in chosen:
            parser.error(f"--{name} goes without --resume, which continues with the recipe and weights of last.pth")
    path = chosen.get("out", parser.get_default("out")) / "last.pth"
    state = read_state(path)
    if not is_current(state["version"]):
        raise TrainingError(f"{path}: of another version of train.py, in which the same options train something else; "
                            "it cannot be resumed, but --init takes its weights")
    stored = completed(state["recipe"], f"{path}: cannot be resumed")
    own = stored["ir"] is not None
    named = ("ir", "vis") if own else ("dataset", "data")
    if None in (stored[key] for key in named) or own and stored["dataset"]:
        raise TrainingError(f"{path}: its recipe names no training pairs, or two sets of them; it cannot be resumed")
    moved = {"dataset", "data"} if own else {"ir", "vis", "ir_pattern", "vis_pattern"}
    if not moved.isdisjoint(chosen):
        parser.error(f"{', '.join(option(name) for name in sorted(moved & chosen.keys()))}: {path} was trained on "
                     f"{'--ir and --vis' if own else '--data'}")
    parser.set_defaults(**stored, recipe=None)
    args = parser.parse_args(argv)
    changed = [f"{key} {stored[key]} -> {getattr(args, key)}" for key in (*RECIPE, *READING)
               if getattr(args, key) != stored[key]
               # The file of a teacher may have moved; Trainer compares its content.
               and (key != "teacher" or NO_TEACHER in (args.teacher, stored["teacher"]))]
    if changed:
        raise TrainingError(f"{path} was trained with another recipe ({'; '.join(changed)}). "
                            "Drop these options, or start a new run with another --out; "
                            f"--init {path} begins with these weights, if the network stays the same")
    return args


def read_state(path: Path) -> dict:
    """Read last.pth, with all keys of STATE. Raises TrainingError."""
    if not path.exists():
        raise TrainingError(f"{path}: nothing to resume; start without --resume, or name the run's folder with --out")
    try:
        state = load(path)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{error}; it cannot be resumed") from None
    missing = [key for key in STATE if not isinstance(state, dict) or key not in state]
    if missing:
        raise TrainingError(f"{path}: not a checkpoint of this train.py: it lacks {', '.join(missing)}; "
                            "it cannot be resumed")
    return state
