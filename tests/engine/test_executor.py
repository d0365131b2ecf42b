"""What the tools change about Paddle's executor changes no result."""

import numpy as np
import paddle
import pytest

from engine.graphs import executor
from support.toolbox import opened

FLAG = executor.KEEP_FLAG


@pytest.fixture(autouse=True)
def as_before():
    """The flag as it was."""
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
    for to_run in (executor.unchanging(first), executor.unchanging(first), first):
        for _ in range(2):
            assert run(to_run, of_first[:1]) == [[3.0, 3.0]]
            assert run(to_run, of_first[1:]) == [[4.0, 4.0]]
            assert run(executor.unchanging(second), of_second) == [[5.0, 5.0], [6.0, 6.0]]
            assert run(to_run, of_first) == [[3.0, 3.0], [4.0, 4.0]]
            assert run(third, of_third) == [[7.0, 7.0], [8.0, 8.0]]


def test_unchanging_programs_with_the_same_feeds_and_fetches_are_told_apart():
    """Each adds a number of its own to the same parameter, and has nothing that is fetched."""
    scope, startup, programs = paddle.static.Scope(), paddle.static.Program(), []
    paddle.enable_static()
    for number in (1.0, 10.0):
        program = paddle.static.Program()
        with paddle.utils.unique_name.guard(), paddle.static.program_guard(program, startup):
            zero = paddle.nn.initializer.Constant(0.0)
            total = paddle.create_parameter([1], "float32", name="told_apart", default_initializer=zero)
            paddle.assign(total + number, total)
        programs.append(executor.unchanging(program))
    with paddle.static.scope_guard(scope):
        engine = paddle.static.Executor(paddle.CPUPlace())
        engine.run(startup)
        found = []
        for program in programs * 2:
            engine.run(program)
            found.append(float(np.asarray(scope.find_var("told_apart").get_tensor())[0]))
    assert found == [1.0, 11.0, 12.0, 22.0]


def test_a_program_as_it_is_may_change(run):
    (first, of_first), (second, _) = build(3.0), build(5.0)
    executor.unchanging(second)
    assert run(first, of_first[:1]) == [[3.0, 3.0]]
    with paddle.static.program_guard(first):
        paddle.assign(of_first[0] * 2.0, of_first[0])
    assert run(first, of_first[:1]) == [[6.0, 6.0]]


@pytest.mark.parametrize("version", ["2.6.2", "3.4.0", "4.0.0", "0.0.0"])
def test_other_releases_get_the_program_itself(version, run, monkeypatch):
    """A nightly build calls itself 0.0.0."""
    monkeypatch.setattr(paddle, "__version__", version)
    program = build(3.0)[0]
    assert executor.unchanging(program) is program


def test_a_feed_that_is_missing_is_still_an_error(run):
    program, fetches = build(3.0)
    engine = paddle.static.Executor(paddle.CPUPlace())
    engine.run(executor.unchanging(program), feed={"x": np.ones(2, "float32")}, fetch_list=fetches)
    with pytest.raises(KeyError if paddle.framework.in_pir_mode() else RuntimeError):
        engine.run(executor.unchanging(program), feed={}, fetch_list=fetches)


def test_a_watched_tensor_shows_what_runs_and_settings_have_made_of_it(run):
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        weight = paddle.create_parameter([3], "float32", name="watched_weight")
        paddle.assign(weight * 2.0, weight)
    scope = paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        engine = paddle.static.Executor(paddle.CPUPlace())
        engine.run(startup)
        tensor = scope.find_var(weight.name).get_tensor()
        watched = executor.ScopeTensor(tensor, paddle.CPUPlace())
        for i in range(4):
            tensor.set(np.full([3], float(i), "float32"), paddle.CPUPlace())
            assert watched.array().tolist() == [i] * 3
            engine.run(program)
            assert watched.array().tolist() == [2 * i] * 3
        tensor.set(np.full([5], 1.0, "float32"), paddle.CPUPlace())  # a place of its own for certain
        assert watched.array().tolist() == [1.0] * 5
        assert np.shares_memory(watched.array(), watched.array())
        copied = executor.ScopeTensor(tensor, object()).array()  # on another device
        assert copied.tolist() == [1.0] * 5 and not np.shares_memory(copied, watched.array())


def test_the_static_tool_does_not_print_its_program(monkeypatch):
    if not paddle.framework.use_pir_api():
        pytest.skip("only under PIR does Paddle's executor print programs")
    printed, plain_text = [], paddle.static.Program.__str__
    monkeypatch.setattr(paddle.static.Program, "__str__", lambda self: printed.append(self) or plain_text(self))
    batch = [np.ones([4, 1, 36, 36], "float32"), np.arange(4), np.arange(4)]
    losses = {}
    for tuned in (True, False):
        overrides = [f"runner.tune_process={tuned}", "hyper_parameters.expert_num=2"]
        with opened("static", "train", overrides) as (graph, _, _):
            printed.clear()
            graph.begin_epoch()
            losses[tuned] = [float(graph.train_step(batch)[0].tensors["loss"]) for _ in range(2)]
        assert bool(printed) is not tuned
    assert losses[True] == losses[False]


@pytest.mark.parametrize(
    "by_user,place,kept", [(None, paddle.CPUPlace(), True), ("0.5", paddle.CPUPlace(), False), (None, object(), False)]
)
def test_tensors_are_kept_on_a_cpu_unless_the_user_has_set_the_flag(by_user, place, kept, monkeypatch):
    monkeypatch.delenv(FLAG, raising=False)
    if by_user is not None:
        monkeypatch.setenv(FLAG, by_user)
    before = paddle.get_flags(FLAG)
    executor.keep_tensors(place)
    assert paddle.get_flags(FLAG) == ({FLAG: -1.0} if kept and paddle.framework.use_pir_api() else before)


def test_start_up_in_pieces_draws_the_same_values(monkeypatch):
    paddle.enable_static()
    startup, started = paddle.static.Program(), []
    with paddle.static.program_guard(paddle.static.Program(), startup):
        names = [p.name for _ in range(5) for p in paddle.nn.Linear(3, 4).parameters()]
    for piece in (4, 10_000):
        monkeypatch.setattr(executor, "PIECE", piece)
        paddle.seed(7)
        with paddle.static.scope_guard(paddle.static.Scope()):
            executor.run_start_up(startup, paddle.CPUPlace())
            scope = paddle.static.global_scope()
            started.append([np.asarray(scope.find_var(name).get_tensor()).tolist() for name in names])
    assert started[0] == started[1]
    if paddle.framework.in_pir_mode():
        monkeypatch.setattr(executor, "PIECE", 4)
        assert len(executor._pieces(startup)) > 5


def test_a_program_is_cut_where_no_value_is_still_needed(run):
    if not paddle.framework.in_pir_mode():
        pytest.skip("only under PIR is a start-up program run in pieces")
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        a, b = paddle.rand([2]), paddle.rand([2])
        paddle.rand([2]) + a + b
        paddle.rand([2])
    operators = program.global_block().ops
    number = {operator.id(): i for i, operator in enumerate(operators)}
    crossed = {
        cut
        for i, operator in enumerate(operators)
        for value in operator.operands_source()
        for cut in range(number[value.get_defining_op().id()] + 1, i + 1)
    }
    assert executor._cuts(operators) == [i for i in range(1, len(operators)) if i not in crossed]
    assert 0 < len(crossed) < len(operators) - 1
