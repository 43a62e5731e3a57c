import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real images' folder, from RPFNET_DATA; without it the tests that need them skip."""
    root = os.environ.get("RPFNET_DATA")
    if not root:
        pytest.skip("set RPFNET_DATA to the folder that holds RoadScene/, TNO/, ... to run the tests on real images")
    return Path(root)
