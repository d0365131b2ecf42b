"""Makes Paddle build networks and programs faster within tests, and run them: imported by conftest.py.

- At each operation of a program Paddle takes down the Python stack, which from within pytest is a third of the time to
  build one. The nearest frame will do.
- ``to_static`` converts a layer's ``forward`` again for each layer and each call. Here, once for each function, and
  again if a name of its module means something else by then, as within ``mock.patch``.
- A program runs in the calling thread, not by threads that wait for work. Tools in processes of their own use threads,
  as a user's do.
"""

import sys
import traceback
import types
import weakref

import paddle
from paddle.jit.dy2static import convert_call_func, program_translator


def _nearest_frame(extract):
    return lambda f=None, limit=1: extract(f or sys._getframe(1), limit)


def _once_a_function(compute):
    """``compute`` of a function, the last argument, which gives the same while the names of its module do."""
    known = weakref.WeakKeyDictionary()

    def call(*args):
        function = getattr(args[-1], "__func__", args[-1])
        if not isinstance(function, types.FunctionType):
            return compute(*args)
        names = function.__globals__
        before, value = known.get(function, ({}, None))
        if before.keys() != names.keys() or any(before[name] is not value for name, value in names.items()):
            value = compute(*args)
            known[function] = dict(names), value
        return value

    return call


traceback.extract_stack = _nearest_frame(traceback.extract_stack)
program_translator.FunctionCache._convert = _once_a_function(program_translator.FunctionCache._convert)
convert_call_func.is_unsupported = _once_a_function(convert_call_func.is_unsupported)
paddle.set_flags({"FLAGS_new_executor_serial_run": True})
