"""A run of a tool within a process that has done something else before, and will after it, such as a notebook's."""

import contextlib

import paddle
from paddle.base import framework
from paddle.utils import unique_name

from engine.graphs import executor, programs


@contextlib.contextmanager
def as_new(graph_name):
    """Give Paddle's state that a new process would have; afterwards all is as it was.

    That is the graph mode, the default programs, their scope, the names, and what a tool sets: device and flag.

    Args:
        graph_name: "dynamic", "static" or "exported".
    """
    was_dynamic, flag, device = paddle.in_dynamic_mode(), paddle.get_flags(executor.KEEP_FLAG), paddle.get_device()
    names = unique_name.switch()
    unique_name.switch(*names)  # it can only be asked by switching
    main, startup = framework.default_main_program(), framework.default_startup_program()
    # before the programs: leaving the dynamic mode later would leave them
    (paddle.enable_static if graph_name == "static" else paddle.disable_static)()
    try:
        with programs.apart():
            yield
    finally:
        (paddle.disable_static if was_dynamic else paddle.enable_static)()
        unique_name.switch(*names)  # Paddle begins the names anew, and other programs, where the dynamic mode begins
        framework.switch_main_program(main)
        framework.switch_startup_program(startup)
        paddle.set_flags(flag)
        paddle.set_device(device)
