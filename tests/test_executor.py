"""What the tools change about Paddle's executor changes no result."""

import gc
import weakref

import numpy as np
import paddle
import pytest

from engine import executor

FLAG = executor.KEEP_FLAG


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The flag and Paddle's function as they were."""
    module = executor.paddles
    if hasattr(module, executor.FUNCTION):
        monkeypatch.setattr(module, executor.FUNCTION, getattr(module, executor.FUNCTION))
    flag = paddle.get_flags(FLAG)
    yield
    paddle.set_flags(flag)


def build(factor):
    """(program, [x * factor, x + factor])"""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        x = paddle.static.data("x", [-1])
        return program, [x * factor, x + factor]


@pytest.fixture
def run():
    paddle.enable_static()
    engine = paddle.static.Executor(paddle.CPUPlace())
    yield lambda program, fetches: [
        value.tolist() for value in engine.run(program, feed={"x": np.ones(2, "float32")}, fetch_list=fetches)
    ]
    paddle.disable_static()


def test_programs_and_fetches_are_still_told_apart(run):
    (first, of_first), (second, of_second), (third, of_third) = (build(factor) for factor in (3.0, 5.0, 7.0))
    for named in (first, second):
        executor.print_once(named)
        for _ in range(2):
            assert run(first, of_first[:1]) == [[3.0, 3.0]]
            assert run(first, of_first[1:]) == [[4.0, 4.0]]
            assert run(second, of_second) == [[5.0, 5.0], [6.0, 6.0]]
            assert run(first, of_first) == [[3.0, 3.0], [4.0, 4.0]]
            assert run(third, of_third) == [[7.0, 7.0], [8.0, 8.0]]


def test_a_program_that_was_not_named_may_change(run):
    (first, of_first), (second, _) = build(3.0), build(5.0)
    executor.print_once(second)
    assert run(first, of_first[:1]) == [[3.0, 3.0]]
    with paddle.static.program_guard(first):
        paddle.assign(of_first[0] * 2.0, of_first[0])
    assert run(first, of_first[:1]) == [[6.0, 6.0]]


def test_a_program_that_is_named_is_not_kept_alive(run):
    program = build(3.0)[0]
    executor.print_once(program)
    gone = weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None


def test_a_program_that_is_named_is_not_printed_again(run):
    if not paddle.framework.in_pir_mode():
        pytest.skip("only under PIR is it printed at all")
    program, fetches = build(3.0)
    with pytest.MonkeyPatch.context() as patch:
        executor.print_once(program)
        patch.setattr(type(program), "__str__", lambda self: pytest.fail("printed"))
        assert run(program, fetches[:1]) == [[3.0, 3.0]]


def test_a_paddle_without_that_function_is_left_alone(run, monkeypatch):
    module = executor.paddles
    monkeypatch.delattr(module, executor.FUNCTION, raising=False)
    executor.print_once(build(3.0)[0])
    assert not hasattr(module, executor.FUNCTION)


@pytest.mark.parametrize("by_user", [None, "0.5"])
def test_tensors_are_kept_unless_the_user_has_set_the_flag(by_user, monkeypatch):
    monkeypatch.delenv(FLAG, raising=False)
    if by_user is not None:
        monkeypatch.setenv(FLAG, by_user)
    before = paddle.get_flags(FLAG)
    executor.keep_tensors(paddle.CPUPlace())
    done = by_user is None and paddle.framework.use_pir_api()
    assert paddle.get_flags(FLAG) == ({FLAG: -1.0} if done else before)


def test_tensors_on_another_device_are_not_kept(monkeypatch):
    monkeypatch.delenv(FLAG, raising=False)
    before = paddle.get_flags(FLAG)
    executor.keep_tensors(paddle.CUDAPlace(0) if paddle.is_compiled_with_cuda() else object())
    assert paddle.get_flags(FLAG) == before
