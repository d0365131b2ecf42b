"""notebook.ipynb as it is committed."""

import json

from support import ROOT


def test_the_notebook_is_small_and_shows_no_error():
    """Its outputs are of the last `make notebook`; CI runs it from top to bottom."""
    path = ROOT / "notebook.ipynb"
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert path.stat().st_size < 1_000_000 and all(cell["execution_count"] for cell in cells)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output["output_type"] == "error"]
