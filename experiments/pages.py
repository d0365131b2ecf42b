"""Write the tables of the result lines into the pages, and draw their pictures: python experiments/pages.py [--check]

In a page, a comment names the command that makes what follows, up to the next comment "end":

    <!-- python experiments/table.py -m experiments/choosing.yaml -->
    (the table)
    <!-- end -->

What follows a command of tools/plot.py is the author's: it shows the picture that --out names. A picture is drawn
again if the command or a log has changed since.

--check writes nothing; exit code 1 if a page or a picture is not what its command makes.
"""

import argparse
import functools
import io
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README*.md", "docs/*.md", "examples/*/*.md")
PLOT = "tools/plot.py"
BEGIN = "<!-- python "
MADE = re.compile(rf"({BEGIN}([^\n]*?) -->\n)(?:(?!{BEGIN}).)*?(<!-- end -->)", re.DOTALL)


def made(script, *arguments):
    """What a script with these arguments prints.

    Raises:
        SystemExit: it fails; its message is the script's.
    """
    process = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{shlex.join([script, *arguments])}: {process.stderr.strip()}")
    return process.stdout


def drawn(arguments):
    """(The path of the picture that ``tools/plot.py`` draws with these arguments, its bytes)."""
    *others, out = arguments
    if others[-1:] != ["--out"] or not out.endswith(".png"):
        raise SystemExit(f"{PLOT} {shlex.join(arguments)}: a page's command must end with --out and a .png file.")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "picture.png")
        made(PLOT, *others, str(path))
        return ROOT / out, path.read_bytes()


def is_up_to_date(path, picture):
    """Whether the picture in a file is of the same kind, metrics and logs as another one, given by its bytes."""
    from PIL import Image  # matplotlib's

    def source(file):
        with Image.open(file) as image:
            return image.info.get("Source")

    return path.exists() and source(path) == source(io.BytesIO(picture))


def differing():
    """Path of a page or a picture -> what the commands make, text or bytes, for each that differs.

    Raises:
        SystemExit: a command fails, or its table has no end.
    """
    found, output = {}, functools.cache(made)  # several pages have the same table
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        old = new = path.read_text(encoding="utf-8")
        blocks = list(MADE.finditer(old))
        if old.count(BEGIN) != len(blocks):
            raise SystemExit(f"{path}: a comment with a command has no <!-- end --> before the next one.")
        for block in blocks:
            script, *arguments = shlex.split(block[2])
            if script == PLOT:
                picture, content = drawn(arguments)
                if not is_up_to_date(picture, content):
                    found[picture] = content
            else:
                new = new.replace(block[0], block[1] + output(script, *arguments) + block[3])
        if new != old:
            found[path] = new
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if anything differs")
    is_check = parser.parse_args().check
    contents = differing()
    for path, content in contents.items():
        print(f"{path.relative_to(ROOT)} {'differs from' if is_check else 'is now'} what its commands make")
        if not is_check:
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    sys.exit(bool(contents) and is_check)
