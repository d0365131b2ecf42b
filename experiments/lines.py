"""The file of result lines: one JSON object for each run, added when the run has ended."""

import json
import os

from engine.errors import UserError

STAGES = ("search", "final", "speed")
# what each line has; the measured numbers come beside it, or an error
NEEDED = {"stage": str, "network": str, "overrides": dict, "seed": int, "recipe": str}


def read(path):
    """All lines of a file, as dicts; [] if there is no file yet.

    Raises:
        UserError: naming the line that is none of a run.
    """
    if not os.path.exists(path):
        return []
    found = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                is_run = all(isinstance(line[key], kind) for key, kind in NEEDED.items()) and line["stage"] in STAGES
            except (ValueError, KeyError, TypeError, RecursionError):
                is_run = False
            if not is_run:
                raise UserError(f"{path}, line {number}: this is not the result of a run. Remove the line.")
            found.append(line)
    return found


def add(path, line):
    """Add a line, at once, so that a stop leaves no part of one."""
    text = json.dumps(line) + "\n"
    with open(path, "ab") as file:
        file.write(text.encode())


def find(lines, stage, network, recipe):
    """The line of a run, or None."""
    wanted = (stage, network, recipe)
    return next((line for line in lines if (line["stage"], line["network"], line["recipe"]) == wanted), None)
