"""Each tool explains itself: it imports, and --help ends with exit code 0."""
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py")
               if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_explains_itself(tool, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tools.{tool}").main(["--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out
