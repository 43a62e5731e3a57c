"""The 16 fusion metrics, one file for each family, and the protocols of published tables.

`registry.metric` makes a public function of arrays from a function of checked images. `protocols.evaluate` computes all
columns of a table. `tables` ranks methods and formats tables. The package needs NumPy, OpenCV and scikit-image, but not
PyTorch.
"""
from measures.differences import AG, CC, MSE, PSNR, SCD, SD, SF
from measures.edges import Nabf, Qabf
from measures.fmi import FMI
from measures.histogram import EN, MI
from measures.protocols import LOWER_IS_BETTER, NAMES, PROTOCOLS, columns, evaluate
from measures.registry import METRICS
from measures.ssim import MS_SSIM, SSIM
from measures.vif import VIF, VIFF

__all__ = [
    "AG", "CC", "EN", "FMI", "LOWER_IS_BETTER", "METRICS", "MI", "MSE", "MS_SSIM", "NAMES", "PROTOCOLS", "PSNR", "SCD",
    "SD", "SF", "SSIM", "VIF", "VIFF", "Nabf", "Qabf", "columns", "evaluate",
]
