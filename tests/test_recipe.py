"""Options of train.py and the recipes in their files: what they are, and what is refused."""
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from training import TINY

import recipe
import train
import trainer
from loss import DistillationLoss, FusionLoss
from net import RPFNet
from recipe import PLACES, TrainingError
from weights import CHECKPOINTS

ROOT = Path(train.__file__).parent


RECIPE_FILES = sorted((ROOT / "recipes").glob("*.json"))

# What the paper prints, section 4.1 and Eq. 6-14, except saliency_form: the paper prints l2, which is rms times the
# square root of the number of pixels.
# 100 epochs fit "halved every 20 epochs".
PRINTED = {
    "dataset": "roadscene", "batch": 16, "crop": 128, "crops": 3383, "fixed_crops": True, "flips": False,
    "dim": 0, "lamps": 0,
    "lr": 1e-3, "schedule": "step", "epochs": 100, "steps": 0, "max_minutes": 0, "clip": 0, "fixed_statistics": 0,
    "stages": 3, "channels": 32, "global_branch": "fourier", "cpm": True, "prior": True,
    "lambda_1": 0.3, "saliency": True, "saliency_form": "rms", "weight": "printed", "negatives": True,
    "contrast_domain": "frequency", "lambda_2": 5, "ssim_window": 11, "ssim_weighted": False, "ssim_whole": False,
    "lambda_3": 0,
}


def options(*argv, out="nowhere"):
    return train.parse([*argv, "--out", str(out)])


def test_the_default_recipe_is_the_papers():
    paper = json.loads((ROOT / "recipes" / "paper.json").read_text(encoding="utf-8"))["recipe"]
    assert {key: paper[key] for key in PRINTED} == PRINTED
    args = options()
    assert {key: getattr(args, key) for key in recipe.RECIPE} == paper
    # By its steps: 212 of 16 crops an epoch, 20 epochs at each rate.
    steps = math.ceil(3383 / 16)
    rates = [trainer.learning_rate(args.lr, args.schedule, (epoch * steps) / (100 * steps)) for epoch in range(100)]
    assert rates == [1e-3 * 0.5 ** (epoch // 20) for epoch in range(100)]


def test_the_papers_recipe_builds_the_printed_loss():
    inputs = [torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    ours, printed = trainer.build_loss(options())(*inputs), FusionLoss.paper()(*inputs)
    torch.testing.assert_close(ours, printed)
    assert "L_l" not in ours[1]
    # Eq. 13 in the sum of (1 - SSIM), by value: of constant images, SSIM is the luminance factor alone.
    a, b = (torch.full((1, 1, 32, 32), value) for value in (0.2, 0.6))
    ssim = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    terms = trainer.build_loss(options())(a, a, b, b)[1]
    assert terms["L_s"].item() == pytest.approx(2 * (1 - ssim), rel=1e-3)


def test_the_loss_of_the_contrast_recipe_has_a_name():
    inputs = [torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    ours, named = trainer.build_loss(options("--recipe", "contrast"))(*inputs), FusionLoss.contrast()(*inputs)
    torch.testing.assert_close(ours, named, rtol=0, atol=0)
    assert "L_l" in named[1]


def test_the_papers_network_is_the_default_network():
    assert trainer.build_network(options()).config == RPFNet().config


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_each_recipe_file_has_all_options_and_is_what_its_name_stands_for(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["recipe"].keys() == {*recipe.RECIPE} and stored["about"]
    args = options("--recipe", path.stem)
    assert {key: getattr(args, key) for key in recipe.RECIPE} == stored["recipe"]
    assert all(getattr(args, key) is None for key in PLACES if key != "data")


def test_each_data_set_has_its_folder_by_default():
    assert [options(*argv).data for argv in ([], ["--recipe", "medical"], ["--dataset", "msrs"], ["--data", "x"])] == [
        "data/RoadScene", "data/Harvard", "data/MSRS", "x"]


def test_each_checkpoint_has_a_recipe_of_its_name():
    assert {path.stem for path in RECIPE_FILES} >= {*CHECKPOINTS}


def test_a_teacher_takes_the_place_of_the_loss():
    args = options("--recipe", "tiny")
    loss = trainer.build_loss(args)
    assert isinstance(loss, DistillationLoss) and not loss.teacher.training
    assert not options("--teacher", "contrast").saliency and options("--teacher", "none").saliency


@pytest.mark.parametrize("option", [["--lambda-2", "4"], ["--saliency"], ["--lambda-3", "0"]])
def test_options_of_the_loss_are_refused_beside_a_teacher(option, capsys):
    with pytest.raises(SystemExit):
        options("--teacher", "contrast", *option)
    assert f"{option[0]} has no effect: with --teacher" in capsys.readouterr().err


def test_options_override_the_recipe():
    args = options("--recipe", "contrast", "--lr", "2e-3", "--no-flips", "--lambda-3", "0")
    stored = json.loads((ROOT / "recipes" / "contrast.json").read_text(encoding="utf-8"))["recipe"]
    changed = {key: getattr(args, key) for key in recipe.RECIPE if getattr(args, key) != stored[key]}
    assert changed == {"lr": 2e-3, "flips": False, "lambda_3": 0}


PAPER = json.loads((ROOT / "recipes" / "paper.json").read_text(encoding="utf-8"))["recipe"]


def stored_recipe(**changes):
    kept = {key: value for key, value in (PAPER | changes).items() if value != "left out"}
    return json.dumps({"version": recipe.VERSION, "recipe": kept})



@pytest.mark.parametrize(("content", "message"), [
    (None, r"recipe\.json: cannot be read"),
    ("no json", r"recipe\.json: not a JSON file"),
    ("[" * 100_000, r"recipe\.json: nested too deep"),
    ("[]", r"recipe\.json: holds a list"),
    ("null", r"recipe\.json: holds null"),
    ('{"config": {}}', "not a recipe of this train.*recipe. is missing"),
    (f'{{"version": {recipe.VERSION}, "recipe": [1]}}', "not a recipe of this train.*is a list"),
    (stored_recipe(norm="pooled"), "unknown options: norm"),
    (stored_recipe(out="/elsewhere"), "unknown options: out"),
    (stored_recipe(sharing="all"), "sharing: invalid choice: 'all'"),
    (stored_recipe(weight="soft"), "weight: invalid choice: 'soft'"),
    (stored_recipe(flips="yes"), "flips"),
    (stored_recipe(flips=1), "flips"),
    (stored_recipe(lr="0.001"), "lr is a text: '0.001'"),
    (stored_recipe(lr=True), "lr"),
    (stored_recipe(lr=None), "lr is null"),
    (stored_recipe(clip=math.nan), "clip: 'nan' is no finite number"),
    (stored_recipe(stages=10**9), "stages: '1000000000' is no whole number from 1 to 64"),
    (stored_recipe(batch=2.5), "batch: '2.5' is no whole number"),
    (stored_recipe(crop=[128]), "crop is a list"),
    (stored_recipe(ir=3), "ir is a number, where a path is expected"),
])
def test_wrong_recipe_files_are_explained_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_text(content)
    assert train.main(["--recipe", str(path), "--out", str(tmp_path / "out")]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: --recipe ") and re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_older_than_an_option_has_the_papers_value_for_it(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(stored_recipe(dim="left out", flips="left out", lr=0.5))
    assert recipe.read_recipe(str(path)) == PAPER | {"lr": 0.5, "resize": None, "ir_range": None, "vis_bits": None}


@pytest.mark.parametrize("version", [recipe.VERSION - 1, recipe.VERSION + 1, str(recipe.VERSION), float(recipe.VERSION)])
def test_a_recipe_of_another_version_is_refused(tmp_path, capsys, version):
    """Also one with an option that has another name now."""
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"version": version, "recipe": PAPER | {"contrast": True}}))
    assert train.main(["--recipe", str(path)]) == 1
    assert "best.json: of another version of train.py" in capsys.readouterr().err


def test_a_recipe_without_a_version_is_told_which_one_to_add(tmp_path, capsys):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"recipe": {"dim": 0.3}}))
    assert train.main(["--recipe", str(path)]) == 1
    assert f'it has no "version"; add "version": {recipe.VERSION}' in capsys.readouterr().err


def test_a_recipe_can_have_a_long_teacher_and_a_data_set_in_upper_case(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(stored_recipe(teacher="/folder" * 40 + "/t.pth", dataset="RoadScene"))
    stored = recipe.read_recipe(str(path))
    assert stored["teacher"] == "/folder" * 40 + "/t.pth" and stored["dataset"] == "roadscene"


def test_an_unknown_recipe_says_which_are_known(capsys):
    assert train.main(["--recipe", "natural"]) == 1
    assert "--recipe natural: choose from contrast, medical, paper, small, tiny" in capsys.readouterr().err


# --- options ---


def test_options_reach_what_they_name():
    loss = trainer.build_loss(options(
        "--contrast-domain", "spatial", "--no-negatives", "--weight", "plus", "--ssim-window", "5",
        "--ssim-weighted", "--ssim-whole", "--lambda-1", "0.7", "--saliency-form", "l2",
        "--lambda-2", "3", "--lambda-3", "2"))
    contrastive = loss.contrastive
    assert (contrastive.domain, contrastive.negatives, contrastive.weight) == ("spatial", False, "plus")
    assert (loss.structure.window, loss.structure.weighted, loss.structure.whole) == (5, True, True)
    assert (loss.saliency.lambda_1, loss.saliency.form) == (0.7, "l2")
    assert loss.luminance is not None and (loss.lambda_2, loss.lambda_3) == (3, 2)
    config = trainer.build_network(options("--channels", "8", "--stages", "2", "--sharing", "none", "--no-prior",
                                         "--global-branch", "transformer", "--no-cpm")).config
    assert config == {"channels": 8, "stages": 2, "sharing": "none", "global_branch": "transformer", "cpm": False,
                      "prior": False, "border": 8}


@pytest.mark.parametrize(("option", "kind"), [("--ssim-weighted", (True, False)), ("--ssim-whole", (False, True))])
def test_each_option_of_the_ssim_is_that_of_its_name(option, kind):
    structure = trainer.build_loss(options(option)).structure
    assert (structure.weighted, structure.whole) == kind


WRONG = [
    ("--epochs", "0"), ("--epochs", "ten"), ("--batch", "-1"), ("--batch", "1000000000"), ("--steps", "-1"),
    ("--crops", "0"), ("--crops", "1e3"), ("--val-every", "-1"), ("--workers", "-1"),
    ("--max-minutes", "nan"), ("--max-minutes", "-1"), ("--max-minutes", "inf"), ("--clip", "nan"), ("--clip", "-1"),
    ("--lambda-1", "nan"), ("--lambda-2", "nan"), ("--lambda-3", "nan"), ("--lambda-2", "-1"),
    ("--lr", "nan"), ("--lr", "0"), ("--lr", "-1e-3"), ("--dim", "-0.1"), ("--dim", "1.1"), ("--dim", "nan"),
    ("--lamps", "-0.1"), ("--lamps", "1.1"),
    ("--fixed-statistics", "-1"), ("--fixed-statistics", "2"),
    ("--seed", "-1"), ("--seed", str(2**64)), ("--crop", "0"), ("--crop", "-5"), ("--crop", "8"),
    ("--ssim-window", "4"), ("--ssim-window", "0"), ("--ssim-window", "1"), ("--channels", "2"), ("--channels", "6"),
    ("--stages", "0"), ("--stages", "1000000000"), ("--dataset", "tno"),
    ("--out", ""), ("--out", " "), ("--data", ""), ("--ir", ""), ("--init", ""), ("--recipe", ""),
]


def refused(capsys, *argv):
    """The line in which the parser refuses these options."""
    with pytest.raises(SystemExit) as error:
        train.main([*argv])
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_impossible_values_are_refused_by_name(option, value, capsys):
    assert f"argument {option}: " in refused(capsys, option, value)


@pytest.mark.parametrize(("argv", "message"), [
    (["--ir", "x"], "--ir and --vis go together"),
    (["--ir", "x", "--vis", "y", "--dataset", "msrs"], "without --dataset and --data"),
    (["--recipe", "small", "--teacher", "none"], "the recipe has no L_SS"),
    (["--ir", "x", "--vis", "y", "--data", "z"], "without --dataset and --data"),
    (["--fixed-statistics", "0.5", "--max-minutes", "3"], "without --max-minutes"),
    (["--crop", "16", "--ssim-window", "17"], "--ssim-window 17 is larger than --crop 16"),
    (["--no-prior", "--saliency"], "--saliency has no effect: without --prior"),
    (["--no-prior", "--cpm"], "--cpm has no effect: without --prior"),
    (["--no-saliency", "--lambda-1", "2"], "--lambda-1 has no effect: without --saliency"),
    (["--weight", "none", "--negatives"], "--negatives has no effect: with --weight none"),
    (["--ir", "a", "--vis", "b", "--val-every", "5"], "--val-every has no effect: these pairs have no validation part"),
    (["--lambda-2", "0", "--ssim-window", "7"], "--ssim-window has no effect: with --lambda-2 0"),
    (["--stages", "1", "--sharing", "none"], "--sharing has no effect: one iteration shares no weights"),
    (["--dim", "0", "--lamps", "0.5"], "--lamps has no effect: with --dim 0, no source is darkened"),
    (["--recipe", "contrast", "--max-minutes", "5"], "the recipe has --fixed-statistics 0.66, so add --fixed-statistics 0"),
    (["--teacher", "contrast", "--no-negatives"], "--negatives has no effect: with --teacher"),
    (["--recipe", "small", "--teacher", "none", "--lambda-1", "2"], "--lambda-1 has no effect: without --saliency"),
    (["--epochs", "5", "--steps", "7"], "--epochs goes without --steps"),
    (["--dataset", "msrs", "--ir-pattern", "*_ir"], "--ir-pattern and --vis-pattern go with --ir and --vis"),
    (["--ir-range", "9", "5"], "--ir-range 9 5: LOW must be below HIGH"),
    (["--recipe", "contrast", "--epochs", "5"], "--epochs 5: the recipe has --steps 1200"),
    (["--resume", "runs/a"], "unrecognized arguments: runs/a; a folder follows its option: --out for a run"),
    (["--resume", "--init", "best.pth"], "--init goes without --resume"),
    (["--resume", "--recipe", "paper"], "--recipe goes without --resume"),
])
def test_options_that_contradict_each_other_are_refused_by_name(argv, message, capsys):
    assert message in refused(capsys, *argv)


def test_a_recipe_keeps_how_images_are_read(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(stored_recipe(ir_range=[0, 4095], resize="vis", vis_bits=10))
    args = options("--recipe", str(path), "--ir", "x", "--vis", "y")
    assert args.ir_range == [0, 4095] and args.resize == "vis" and args.vis_bits == 10


def test_help_shows_the_values_of_the_named_recipe(capsys):
    shown = []
    for argv in (["--help"], ["--recipe", "contrast", "--help"]):
        with pytest.raises(SystemExit):
            train.main(argv)
        shown.append(" ".join(capsys.readouterr().out.split()))
    assert "side of a crop, pixels (default: 128)" in shown[0] and "side of a crop, pixels (default: 320)" in shown[1]


def test_the_examples_of_the_help_do_not_write_into_one_folder():
    examples = re.findall(r"^ +(?:python|torchrun .*) train\.py (.*?)(?:  .*)?$", train.__doc__, re.MULTILINE)
    runs = [train.parse(example.split()) for example in examples if "--resume" not in example]
    assert len(runs) == len({run.out for run in runs}) == 5
    assert any(0 < run.steps <= 3 and run.crops <= 3 * run.batch for run in runs)       # a trial, with its statistics


def test_options_that_switch_off_what_is_off_already_are_allowed():
    args = options("--no-prior", "--no-saliency", "--no-cpm", "--weight", "none", "--no-negatives")
    assert not (args.prior or args.saliency or args.cpm or args.negatives)


def test_the_limits_themselves_are_allowed():
    args = options("--seed", str(2**64 - 1), "--crop", "16", "--ssim-window", "15", "--dim", "1", "--clip", "0",
                   "--max-minutes", "0", "--stages", "64", "--epochs", "3", "--batch", "65536")
    assert (args.seed, args.crop, args.dim, args.epochs) == (2**64 - 1, 16, 1, 3)


def test_a_step_that_cannot_fit_into_the_machine_is_refused_with_the_options_that_lower_it(folders, tmp_path, capsys):
    argv = [*folders, *TINY, "--crop", "8192", "--batch", "65536", "--crops", "65536", "--device", "cpu"]
    assert train.main([*argv, "--out", str(tmp_path / "out")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "too little memory for a training step" in line and "lower --batch, --crop" in line


@pytest.mark.parametrize("option", ["--ssim-weighted", "--ssim-whole"])
def test_options_of_a_term_that_is_off(option, capsys):
    with pytest.raises(SystemExit):
        options("--lambda-2", "0", option)
    assert f"{option} has no effect: with --lambda-2 0" in capsys.readouterr().err


def test_a_step_of_the_papers_recipe_fits_into_16_gb(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 2**12}.get)
    trainer.check_memory(options("--device", "cpu"))
    trainer.check_memory(options("--device", "cpu", "--crops", "16", "--batch", "65536"))     # a step has 16 crops
    with pytest.raises(TrainingError, match="at least, and this machine has 16"):
        trainer.check_memory(options("--device", "cpu", "--crop", "512"))


def test_the_seed_determines_the_order_of_fixed_crops():
    first, same, other = (list(trainer.Trainer(options(*TINY, "--crops", "20", "--fixed-crops", "--seed", seed)).batches(0))
                          for seed in ("1", "1", "2"))
    assert first == same != other


def test_epochs_are_of_all_crops():
    assert trainer.Trainer(options(*TINY, "--crops", "7", "--epochs", "3")).total == 3 * 4
