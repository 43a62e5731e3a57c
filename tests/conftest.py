import os
from pathlib import Path

import pytest


class RealImages:
    """Folder of real images: `data_root / "TNO"` is that data set, or skips the test where it is not there."""

    def __init__(self, root: Path):
        self.root = root

    def __truediv__(self, name: str) -> Path:
        if not (self.root / name).is_dir():
            pytest.skip(f"{self.root / name}: not there; see Data in the README")
        return self.root / name


@pytest.fixture(scope="session")
def data_root() -> RealImages:
    """The real images' folder, from RPFNET_DATA; without it the tests that need them skip."""
    root = os.environ.get("RPFNET_DATA")
    if not root:
        pytest.skip("set RPFNET_DATA to the folder that holds RoadScene/, TNO/, ... to run the tests on real images")
    return RealImages(Path(root))
