"""Write the tables of the result lines into the pages: python experiments/pages.py [--check]

In a page, a comment names the command that makes what follows, up to the next comment "end":

    <!-- python experiments/table.py -m experiments/choosing.yaml -->
    (the table)
    <!-- end -->

--check writes nothing; exit code 1 if a page is not what its commands make.
"""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README*.md", "docs/*.md", "examples/*/*.md")
BEGIN = "<!-- python experiments/"
MADE = re.compile(rf"({BEGIN}([^\n]*?) -->\n)((?:(?!{BEGIN}).)*?)(<!-- end -->)", re.DOTALL)


def made(command):
    """What one of the scripts of this folder, with its arguments, prints.

    Raises:
        SystemExit: it fails; its message is the script's.
    """
    script, *arguments = shlex.split(command)
    called = [sys.executable, f"experiments/{script}", *arguments]
    process = subprocess.run(called, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{command}: {process.stderr.strip()}")
    return process.stdout


def differing():
    """Page -> its text as the commands make it, for each page that is another one.

    Raises:
        SystemExit: a command fails, or its table has no end.
    """
    found = {}
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        old = path.read_text(encoding="utf-8")
        if old.count(BEGIN) != len(MADE.findall(old)):
            raise SystemExit(f"{path}: a comment with a command has no <!-- end --> before the next one.")
        new = MADE.sub(lambda block: block[1] + made(block[2]) + block[4], old)
        if new != old:
            found[path] = new
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page differs")
    is_check = parser.parse_args().check
    pages = differing()
    for path, text in pages.items():
        print(f"{path.relative_to(ROOT)} {'differs from' if is_check else 'is now'} what its commands make")
        if not is_check:
            path.write_text(text, encoding="utf-8")
    sys.exit(bool(pages) and is_check)
