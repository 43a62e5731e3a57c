"""Entry points for torch.hub: torch.hub.load(FOLDER, "rpfnet_contrast", source="local"). See docs/export.md."""
import collections.abc
import sys as _sys
from pathlib import Path as _Path

_net = getattr(_sys.modules.get("net"), "__file__", None)
if _net and _Path(_net).resolve().parent != _Path(__file__).resolve().parent:
    raise ImportError(f"{_net} is imported already, and RPFNet has a module of this name, too; call torch.hub.load before "
                      "it is imported, or rename it")

from net import RPFNet as _RPFNet  # noqa: E402

dependencies = ["torch", "numpy", "cv2", "PIL"]      # torch.hub checks that these modules are installed


def _entry(checkpoint: str, about: str) -> collections.abc.Callable[..., _RPFNet]:
    """An entry point for a name in weights.CHECKPOINTS."""
    def load(device: str = "cpu") -> _RPFNet:
        return _RPFNet.from_pretrained(checkpoint, device)

    load.__doc__ = f"""RPFNet {about}, in eval mode.

    `network.fuse(ir, vis)` takes and returns numpy images, uint8. `network(ir, vis_y)` takes tensors (B, 1, H, W) in
    [0, 1] and returns the fused luminance, a tensor of the same shape.

    Args:
        device: device of the network, such as "cuda".
    """
    return load


rpfnet = _entry("paper", "trained with the paper's recipe; README.md says for how long")
rpfnet_contrast = _entry("contrast", "for natural images, day and night; the default of test.py")
rpfnet_medical = _entry("medical", "for medical images")
rpfnet_small = _entry("small", "of 32 channels and one iteration, a student of rpfnet_contrast")
rpfnet_tiny = _entry("tiny", "of 16 channels and one iteration, a student of rpfnet_contrast")
