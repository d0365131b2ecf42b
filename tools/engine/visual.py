"""``runner.use_visual``: the numbers of the log, for VisualDL as well."""

import os

from engine.errors import UserError


def open_log(folder, job):
    """A function (name, value, step) that records in ``folder``/visualDL_log/``job``.

    Raises:
        UserError: visualdl is not installed.
    """
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise UserError(
            f"runner.use_visual is true, but visualdl cannot be imported ({error}). Run: pip install visualdl"
        ) from error
    writer = LogWriter(os.path.join(folder, "visualDL_log", job))
    return lambda name, value, step: writer.add_scalar(tag=f"{job}/{name}", step=step, value=value)
