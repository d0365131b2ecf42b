"""tools/engine/tools.py: the table of tools. Its command lines are tested in test_report.py."""

import re
import shutil
import subprocess
import sys
import textwrap

from engine import tools
from support import ROOT
from support.toolbox import TIMEOUT_S, copy_model


def test_each_script_that_runs_a_config_has_a_row():
    assert {*tools.TOOLS, "plot"} == {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert {tool.next for tool in tools.TOOLS.values()} <= {"", *tools.TOOLS}


def test_a_new_tool_is_one_script_and_one_row(tmp_path):
    """Those of the example in tools.py."""
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", tools.__doc__)
    script, row = (textwrap.dedent(block).strip() for block in blocks)
    copy_model(tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tools" / "count.py").write_text(script)
    table = tmp_path / "tools" / "engine" / "tools.py"
    before, after = table.read_text().split('        Tool("predict"')
    table.write_text(f'{before}        {row}\n        Tool("predict"{after}')
    command = [sys.executable, str(tmp_path / "tools" / "count.py"), "-m", str(ROOT / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, "4000 examples\n"), done.stderr
    assert "usage: count.py" in subprocess.run([*command[:2], "-h"], capture_output=True, text=True).stdout
