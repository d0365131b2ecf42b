"""New programs to build into, whose parameters get the names that a new process would give them."""

import contextlib

import paddle


@contextlib.contextmanager
def new_programs():
    """Build into new default programs, with the names that a new process would give; gives the main program."""
    main, startup = paddle.static.Program(), paddle.static.Program()
    # Under PIR paddle.create_parameter, paddle.static.nn.fc and the like have their names numbered by these (3.3.1).
    others = [paddle.base.framework.Program() for _ in range(2)]
    with paddle.utils.unique_name.guard(), paddle.base.framework.program_guard(*others):
        with paddle.static.program_guard(main, startup):
            yield main


@contextlib.contextmanager
def apart():
    """``new_programs``, and a scope of their own."""
    with paddle.static.scope_guard(paddle.static.Scope()), new_programs():
        yield
