"""Train and evaluate YOLOv5 of the ultralytics package, without network access. The command is tools/detection.py.

The licence of the package is AGPL-3.0. It is imported only when it is used, after its downloads, analytics, logging
services and installations have been turned off. Its settings are written to a temporary folder.
"""
from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("detector.py is a module; the command is tools/detection.py")

import atexit
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from support.console import first_line

# The package's "auto" also chooses AdamW for fewer than some thousand optimiser steps. It is set here, so that the
# choice does not depend on the number of images.
OPTIMISER = {"optimizer": "AdamW", "lr0": 1e-3, "lrf": 0.01, "momentum": 0.9}
FONTS = ("Arial.ttf", "Arial.Unicode.ttf")


class DetectorError(Exception):
    """A detector cannot be trained or evaluated. The message is one line."""


@dataclass(frozen=True)
class Schedule:
    """Training options of a detector. They are the same for all methods."""
    model: str | Path           # a configuration of the package (yolov5n.yaml) for random weights, or a file of weights
    epochs: int
    size: int                   # longer side of the images, pixels
    batch: int                  # batch size
    device: str
    workers: int                # processes that read images


@cache
def package() -> ModuleType:
    """Import ultralytics with all network access turned off. Raises DetectorError if it is not installed.

    Its settings are in a temporary folder. The settings of the user are not used and not changed.
    """
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false",
                   "YOLO_CONFIG_DIR": _settings_folder()}
    os.environ.pop("ULTRALYTICS_API_KEY", None)     # with this key, the package uploads the trainings
    try:
        import ultralytics
        from matplotlib import font_manager
        from ultralytics.utils import SETTINGS, USER_CONFIG_DIR
    except ModuleNotFoundError as error:
        raise DetectorError(f"{error.name} is missing; python -m pip install -r requirements-detection.txt") from None
    SETTINGS.update({name: False for name, value in SETTINGS.items() if value is True})
    for name in FONTS:      # the package downloads missing fonts, even if nothing is drawn
        shutil.copyfile(font_manager.findfont("DejaVu Sans"), USER_CONFIG_DIR / name)
    return ultralytics


def _settings_folder() -> str:
    folder = tempfile.mkdtemp(prefix="detection-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def version() -> str:
    return f"ultralytics {metadata.version('ultralytics')}"


def train(data: Path, folder: Path, schedule: Schedule, seed: int) -> float:
    """Train a detector.

    Args:
        data: data.yaml. Its train part is for training, its val part to choose the best epoch.
        folder: output folder. weights/best.pt in it holds the weights of the best epoch.
        schedule: training options.
        seed: seed of the training.
    Returns:
        Training time in minutes.
    Raises:
        DetectorError: the package is not installed, or training fails.
    """
    start = time.monotonic()
    model = _load(schedule.model)
    with tqdm(desc=folder.name, unit="batch", disable=None) as bar:
        _show_progress(model, bar, schedule.epochs)
        # nbs: by default the package accumulates gradients over 64 images, which gives few steps for a small set.
        # amp: its check downloads a model.
        # patience: no early stopping, so that all methods have the same schedule.
        _call(data, model.train, data=str(data.resolve()), epochs=schedule.epochs, imgsz=schedule.size,
              batch=schedule.batch, nbs=schedule.batch, seed=seed, deterministic=True, amp=False,
              patience=schedule.epochs, **OPTIMISER, **_common(folder, schedule))
    if model.trainer.batch_size != schedule.batch:      # the package halves it without a word if a GPU is full
        raise DetectorError(f"{data}: too little memory for batches of {schedule.batch}; the package trained with "
                            f"{model.trainer.batch_size}, so the result cannot be compared; lower --batch")
    return (time.monotonic() - start) / 60


def score(weights: Path, data: Path, folder: Path, schedule: Schedule) -> dict[str, float]:
    """Average precision at IoU 0.5 of a detector on the test part of data.yaml.

    Args:
        weights: the detector.
        data: data.yaml.
        folder: folder for files of the package.
        schedule: image size, batch size, device and workers.
    Returns:
        {class: average precision in [0, 1]} for the classes that occur in the test part, and their mean as "mAP@.5".
    Raises:
        DetectorError: the package or the weights are missing, or the evaluation fails.
    """
    model = _load(weights)
    with tqdm(desc=f"{folder.name} test", unit="batch", leave=False, disable=None) as bar:
        # The package's own bars are off with its other output.
        model.add_callback("on_val_start", lambda validator: bar.reset(len(validator.dataloader)))
        model.add_callback("on_val_batch_end", lambda validator: bar.update())
        box = _call(data, model.val, data=str(data.resolve()), split="test", imgsz=schedule.size, batch=schedule.batch,
                    **_common(folder, schedule)).box
    return {model.names[label]: float(value) for label, value in zip(box.ap_class_index, box.ap50)} | {
        "mAP@.5": float(box.map50)}


def _common(folder: Path, schedule: Schedule) -> dict[str, Any]:
    """Options of training and evaluation: output folder, device, no plots."""
    folder = folder.resolve()
    return {"project": str(folder.parent), "name": folder.name, "exist_ok": True, "plots": False, "verbose": False,
            "device": schedule.device, "workers": schedule.workers}


def _load(source: Path | str) -> Any:
    if isinstance(source, Path) and not source.is_file():       # the package would download a file of this name
        raise DetectorError(f"{source}: no such file of weights")
    return _call(source, package().YOLO, str(source), task="detect")


def _show_progress(model: Any, bar: tqdm, epochs: int) -> None:
    """Show a progress bar over all batches, and the mAP@.5 on the val part after each epoch."""
    def begin(trainer: Any) -> None:
        bar.reset(epochs * len(trainer.train_loader))

    def measured(trainer: Any) -> None:
        bar.set_postfix_str(f"epoch {trainer.epoch + 1}/{epochs}, val mAP@.5 "
                            f"{trainer.metrics.get('metrics/mAP50(B)', 0):.3f}")

    model.add_callback("on_train_start", begin)
    model.add_callback("on_train_batch_end", lambda trainer: bar.update())
    model.add_callback("on_fit_epoch_end", measured)


def _call(about: object, function: Any, *args: Any, **options: Any) -> Any:
    """Call the package. Any exception becomes a DetectorError of one line that begins with `about`."""
    try:
        return function(*args, **options)
    except Exception as error:
        raise DetectorError(f"{about}: {first_line(error)}") from error
