"""Entry points of torch.hub: torch.hub.load(FOLDER, "rpfnet", source="local"). See docs/export.md."""
import collections.abc

from net import RPFNet as _RPFNet

dependencies = ["torch", "numpy", "cv2"]      # torch.hub looks whether these modules are there


def _entry(checkpoint: str, about: str) -> collections.abc.Callable[..., _RPFNet]:
    """An entry point for a name of weights.CHECKPOINTS."""
    def load(device: str = "cpu") -> _RPFNet:
        return _RPFNet.from_pretrained(checkpoint, device)

    load.__doc__ = f"""RPFNet {about}, in eval mode.

    `network.fuse(ir, vis)` takes and returns numpy images, uint8. `network(ir, vis_y)` takes tensors in [0, 1],
    (B, 1, H, W), and returns the fused luminance.

    Args:
        device: where to put it, such as "cuda".
    """
    return load


rpfnet = _entry("paper", "trained with the paper's recipe")
rpfnet_contrast = _entry("contrast", "for natural pictures of night and day, the default of test.py")
rpfnet_medical = _entry("medical", "for medical images")
