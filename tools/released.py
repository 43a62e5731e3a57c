"""The authors' released network, as a reference for measurements.

The published checkpoint is a pickle of a whole module. Its graph differs from the paper: it has 1 x 1 and 3 x 3
convolutions in the cross promotion, its attention does not reach the output, it concatenates where the paper sums, and
it has no 3 x 3 convolution before the FFT. This module holds that graph, written from its description, and a reader
that extracts the weights without executing code in the pickle.

    from tools.released import load_released
    fused = load_released("Model.pth")(ir, vis_y)
"""
from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("released.py is a module; the commands are test.py and tools/tables.py, with --released")

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inference import check_batch
from layers import at_least_float32, irfft2_of_channels
from support.console import first_line, printable
from weights import opened

# ---------------------------------------------------------------------------------------------
# The graph


def _block(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1,
           activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    # The authors saved the network in train mode and run it on single images. BatchNorm then uses the statistics of the
    # image, which is instance normalisation. InstanceNorm also keeps the images of a batch independent.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation),
        nn.InstanceNorm2d(outputs, affine=True), activation())


class CrossPromotion(nn.Module):
    """Each branch refines the other. Both results are computed from the input features. (B, 32, H, W) each."""

    def __init__(self):
        super().__init__()
        self.spatial_to_freq = _block(32, 32, kernel=1, activation=nn.Sigmoid)
        self.freq_to_spatial = _block(32, 32)

    def forward(self, spatial: Tensor, freq: Tensor) -> tuple[Tensor, Tensor]:
        return spatial + self.freq_to_spatial(freq), freq + self.spatial_to_freq(spatial) * freq


class ResidualBranch(nn.Module):
    """Dilated convolutions with rates 1, 3, 5, concatenated, then a 1 x 1 convolution. (B, 32, H, W) -> the same."""

    def __init__(self):
        super().__init__()
        self.dilated = nn.ModuleList(_block(32, 32, dilation=rate) for rate in (1, 3, 5))
        self.fusion = nn.Conv2d(96, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(torch.cat([block(x) for block in self.dilated], 1))


class FourierBranch(nn.Module):
    """A 1 x 1 convolution of the spectrum, plus a 3 x 3 convolution of the features. (B, 32, H, W) -> the same."""

    def __init__(self):
        super().__init__()
        self.conv_layer = nn.Conv2d(64, 64, 1, bias=False)
        self.bn = nn.InstanceNorm2d(64, affine=True)
        self.conv_spatial = _block(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.relu(self.bn(self.conv_layer(self.spectrum(x))))
        return self.inverse(spectrum, x.shape[-2:]) + self.conv_spatial(x)

    @staticmethod
    def spectrum(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2C, H, W/2+1): real and imaginary part of channel 0, then of channel 1, ..."""
        x = at_least_float32(x)         # under autocast: PyTorch has no FFT for bfloat16
        parts = torch.view_as_real(torch.fft.rfft2(x, norm="ortho"))        # (B, C, H, W/2+1, 2)
        return parts.permute(0, 1, 4, 2, 3).flatten(1, 2)

    @staticmethod
    def inverse(parts: Tensor, size: torch.Size) -> Tensor:
        """Inverse of `spectrum`, (B, 2C, H, W/2+1) -> (B, C, H, W). `size` = (H, W) is needed for odd widths."""
        pairs = at_least_float32(parts).unflatten(1, (-1, 2))
        if pairs.device.type != "cpu":      # cuFFT needs a Hermitian spectrum
            return irfft2_of_channels(torch.cat(pairs.unbind(2), 1), size)
        return torch.fft.irfft2(torch.view_as_complex(pairs.permute(0, 1, 3, 4, 2).contiguous()), s=size, norm="ortho")


class Features(NamedTuple):
    """Output of one iteration, each (B, 32, H, W)."""
    fusion: Tensor
    residual: Tensor


class IterationBlock(nn.Module):
    """One stage. The network runs the same stage three times."""

    def __init__(self):
        super().__init__()
        self.cross_promotion = CrossPromotion()
        self.residual_branch = ResidualBranch()
        self.fourier_branch = FourierBranch()

    def forward(self, features: Features) -> Features:
        spatial, freq = self.cross_promotion(features.residual, features.fusion)
        return Features(fusion=self.fourier_branch(freq), residual=self.residual_branch(spatial))


class ReleasedNet(nn.Module):
    """The graph of the authors' published checkpoint, without layers that do not affect the output.

    It has 70,177 parameters. The file has 72,074, because it includes attention layers whose result is not used.
    Normalisation uses the statistics of each image, in train mode and in eval mode.

    Attributes:
        ignored: after `load_released`, names of the layers in the file that are not used.
    """

    ITERATIONS = 3

    def __init__(self):
        super().__init__()
        self.init_spatial = _block(1, 32)
        self.init_freq = _block(2, 32)
        self.iteration_block = IterationBlock()
        self.decoder = nn.Sequential(*_block(32, 32), *_block(32, 16), nn.Conv2d(16, 1, 3, padding=1))
        self.ignored: tuple[str, ...] = ()

    def forward(self, ir: Tensor, vis_y: Tensor,
                return_features: bool = False) -> Tensor | tuple[Tensor, list[Features]]:
        """Fuse a batch, with the signature of `net.RPFNet`.

        Args:
            ir, vis_y: (B, 1, H, W) in [0, 1]; H and W may be odd.
            return_features: also return the features before the first and after each iteration.
        Returns:
            The fused luminance, (B, 1, H, W) in [0, 1].
        Raises:
            TypeError, ValueError: images that do not fit, as for `net.RPFNet`.
        """
        check_batch(ir, vis_y)
        features = [Features(fusion=self.init_freq(torch.cat([vis_y, ir], 1)),       # VIS first
                             residual=self.init_spatial(ir - vis_y))]
        for _ in range(self.ITERATIONS):
            features.append(self.iteration_block(features[-1]))
            if not return_features:
                del features[0]
        fused = torch.sigmoid(self.decoder(features[-1].residual + features[-1].fusion))
        return (fused, features) if return_features else fused


# ---------------------------------------------------------------------------------------------
# Reading the pickle: each class in it is replaced by a stand-in without behaviour

CONV = "torch.nn.modules.conv.Conv2d"
NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
TORCH_CLASSES = {CONV, NORM} | {f"torch.nn.modules.{name}" for name in (
    "activation.ReLU", "activation.ReLU6", "activation.LeakyReLU", "activation.PReLU", "activation.Sigmoid",
    "activation.Softmax", "activation.Tanh", "activation.GELU", "container.Sequential", "container.ModuleList",
    "container.ModuleDict", "dropout.Dropout", "dropout.Dropout2d", "flatten.Flatten", "linear.Identity",
    "linear.Linear", "padding.ReflectionPad2d", "padding.ZeroPad2d", "pooling.AdaptiveAvgPool2d",
    "pooling.AdaptiveMaxPool2d", "pooling.AvgPool2d", "pooling.MaxPool2d", "upsampling.Upsample")}
AUTHORS_CLASS = re.compile(r"net\.[A-Za-z_][A-Za-z0-9_]*")     # one name after "net.", so not net.os.system


class _StandIn:
    """Replaces a class in the pickle. It stores the state and has no other behaviour that could be abused."""

    __slots__ = ("state",)
    kind = ""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def table(self, name: str) -> dict:
        """The dict `name` of the state, such as "_modules" or "_parameters"; {} if there is none."""
        value = self.option(name)
        return value if isinstance(value, dict) else {}

    def option(self, name: str) -> object:
        """An attribute of the layer, such as "stride"; None if there is none."""
        state = getattr(self, "state", None)
        return state.get(name) if isinstance(state, dict) else None


def _stand_in(kind: str) -> tuple[type, str]:
    return type("StandIn", (_StandIn,), {"__slots__": (), "kind": kind}), kind


@contextmanager
def _one_line(path: Path, what: str) -> Iterator[None]:
    """Convert any error in the block to a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:      # noqa: BLE001  torch raises many types, and a malicious file may cause others
        # PyTorch's message about a rejected pickle is not shown: it advises weights_only=False, which would execute it.
        said = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else printable(first_line(error))
        raise ValueError(f"{path}: {what} ({said})") from None


def _unpickle(path: Path) -> object:
    """The object in the file, with stand-ins for its classes. No code of the file, of `net` or of torch.nn is run."""
    with opened(path) as file:
        with _one_line(path, "not a zip file of torch.save; older formats cannot be read safely"):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        refused = sorted(name for name in names if name not in TORCH_CLASSES and not AUTHORS_CLASS.fullmatch(name))
        if refused:
            raise ValueError(f"{path}: refused, its pickle asks for {', '.join(map(printable, refused))}")
        file.seek(0)
        with (_one_line(path, "refused, it is not a pickle of plain layers"),
              torch.serialization.safe_globals([_stand_in(name) for name in names])):
            return torch.load(file, map_location="cpu", weights_only=True)


def _layers(root: object) -> Iterator[tuple[str, _StandIn]]:
    """Yield dotted name and stand-in of each layer with weights, in order. Shared layers are yielded once."""
    stack, seen = [("", root)], set()       # no recursion, because a malicious tree may be deep or cyclic
    while stack:
        name, node = stack.pop()
        if not isinstance(node, _StandIn) or id(node) in seen:
            continue
        seen.add(id(node))
        if any(value is not None for value in node.table("_parameters").values()):
            yield name[1:], node
        stack.extend((f"{name}.{child}", module) for child, module in reversed(node.table("_modules").items()))


# ---------------------------------------------------------------------------------------------
# Fitting the weights into the graph

# Names of the published modules. Names below these are not relied on: layers are matched by kind, shape, dilation and
# order. `residual_branch` comes after `residual_branch.fusion` and stands for the rest of the branch.
SLOTS = ("init_spatial", "init_freq", "cross_promotion.spatial_to_freq", "cross_promotion.freq_to_spatial",
         "residual_branch.fusion", "residual_branch", "fourier_branch.conv_layer", "fourier_branch.bn",
         "fourier_branch.conv_spatial", "decoder")


def load_released(path: str | Path) -> ReleasedNet:
    """Load the authors' checkpoint: the released network in eval mode, on the CPU.

    The file is a pickled module of class `net.FusionNetwork`. PyTorch's restricted unpickler reads it with stand-ins
    for its classes, so no code of the file is run or imported.

    Args:
        path: `Model.pth` as published by the authors, or a file of the same structure.
    Raises:
        OSError: the file cannot be read.
        ValueError: the pickle asks for anything but layers, or a weight of the graph is missing or has another shape.
            The message is one line that names it.
    """
    path = Path(path)
    root = _unpickle(path)
    if not isinstance(root, _StandIn) or root.kind != "net.FusionNetwork":
        remedy = "; if these are weights of this project, use --checkpoint" if isinstance(root, dict) else ""
        raise ValueError(f"{path}: expected a pickled net.FusionNetwork, "
                         f"got {root.kind if isinstance(root, _StandIn) else type(root).__name__}{remedy}")
    model, ignored, problems = ReleasedNet(), [], []
    ours = {name: module for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.InstanceNorm2d))}
    with _one_line(path, "refused, its layers are damaged"):
        theirs = dict(_layers(root))
        for slot in SLOTS:
            graph, layers = _take(slot, ours), _take(slot, theirs)
            problems += _fill(graph, layers)
            for name, layer in layers.items():
                # The attention of the residual branch has weights, but its result is not used. Any other layer that is
                # left over, or that could fit a layer of the graph, means that the file has another graph.
                known = slot == "residual_branch" and not any(_fits(layer, module) for module in graph.values())
                (ignored if known else problems).append(name if known else f"{name} is not part of the graph")
    if problems:
        raise ValueError(f"{path}: not the released network: {printable('; '.join(problems))}")
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinite numbers")
    model.ignored = (*ignored, *theirs)
    return model.eval()


def _take(slot: str, layers: dict) -> dict:
    """Remove the layers at or below `slot` from `layers` and return them."""
    return {name: layers.pop(name) for name in list(layers) if f".{slot}." in f".{name}."}


def _fill(graph: dict[str, nn.Module], layers: dict[str, _StandIn]) -> list[str]:
    """Copy weights into the graph, in order. Returns a line for each missing layer. Unused ones stay in `layers`."""
    missing = []
    queues = {kind: iter([name for name, layer in layers.items() if layer.kind == kind]) for kind in (CONV, NORM)}
    for name, module in graph.items():
        queue = queues[CONV if isinstance(module, nn.Conv2d) else NORM]
        match = next((other for other in queue if _fits(layers[other], module)), None)
        if match is None:
            missing.append(f"nothing fits {name} {_describe(module)}")
        else:
            _copy(layers.pop(match), module)
    return missing


def _fits(layer: _StandIn, module: nn.Module) -> bool:
    """Whether a layer of the file has the kind, the shapes and the settings of a layer of the graph."""
    weight, bias = (layer.table("_parameters").get(name) for name in ("weight", "bias"))
    if not _is_weight(weight, module.weight.shape):
        return False
    if not isinstance(module, nn.Conv2d):
        return layer.kind == NORM and _is_weight(bias, module.bias.shape) and layer.option("eps") == module.eps
    if bias is not None and (module.bias is None or not _is_weight(bias, module.bias.shape)):
        return False
    return (layer.kind == CONV and layer.option("padding") in (module.padding, "same")
            and all(layer.option(name) == getattr(module, name)
                    for name in ("stride", "dilation", "groups", "padding_mode")))


def _is_weight(value: object, shape: torch.Size) -> bool:
    return (isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
            and value.layout == torch.strided and value.device.type == "cpu")


@torch.no_grad()
def _copy(layer: _StandIn, module: nn.Module) -> None:
    weight, bias = (layer.table("_parameters").get(name) for name in ("weight", "bias"))
    module.weight.copy_(weight)
    if bias is not None:
        module.bias.copy_(bias)
    elif module.bias is not None:
        module.bias.zero_()         # a layer without bias is equal to one with bias 0


def _describe(module: nn.Module) -> str:
    shape = tuple(module.weight.shape)
    return f"{shape}, dilation {module.dilation[0]}" if isinstance(module, nn.Conv2d) else f"normalisation {shape}"
