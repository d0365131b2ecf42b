"""tools/engine/batches.py: every example once, in the order asked for; a failing reader never hangs."""

import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import traceback
import types

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle.io import Dataset, IterableDataset
from toolbox import assert_refused, run_tool, small_data

from engine import blocks
from engine.batches import Batches, CustomBatches, open_batches, open_dataset
from engine.errors import UserError, user_errors

HANG_S = 60


@pytest.fixture(autouse=True)
def _no_hang():
    """A reader's exception hangs Paddle's own loader for ever; here that would fail the test."""

    def give_up(*_):
        raise AssertionError(f"hung for {HANG_S} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)


class Items(Dataset):
    words = "a broken line"

    def __init__(self, size=10, bad=None):
        self.size, self.bad = size, bad

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if i == self.bad:
            raise KeyError(self.words)
        return [np.float32(i), np.int64(i)]


class Stream(IterableDataset):
    def __init__(self, size=10, bad=None):
        self.items = Items(size, bad)

    def __iter__(self):
        for i in range(len(self.items)):
            yield self.items[i]


SETTINGS = {
    "train_data_dir": "/train",
    "test_data_dir": "/test",
    "train_batch_size": 4,
    "infer_batch_size": 4,
    "drop_last": True,
    "infer_drop_last": False,
    "shuffle": False,
    "shuffle_window": None,
    "num_workers": 0,
    "seed": 3,
}


def make(dataset, job="train", **settings):
    return Batches(dataset, types.SimpleNamespace(**{**SETTINGS, **settings}), job, paddle.CPUPlace())


def numbers(batches, epoch=0):
    return [[int(x) for x in np.asarray(batch[1])] for batch in batches(epoch)]


def flat(batches, epoch=0):
    return [i for batch in numbers(batches, epoch) for i in batch]


@pytest.mark.parametrize("kind", [Items, Stream])
def test_training_drops_the_partial_batch_and_evaluation_keeps_it(kind):
    assert numbers(make(kind())) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(make(kind(), drop_last=False))[-1] == [8, 9]
    assert numbers(make(kind(), job="infer")) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert numbers(make(kind(), job="infer", infer_drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("kind", [Items, Stream])
def test_shuffling_is_another_order_each_epoch_and_the_same_for_a_seed(kind):
    batches = make(kind(50), shuffle=True, drop_last=False)
    first, second = flat(batches, 0), flat(batches, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50)) != first
    assert first == flat(make(kind(50), shuffle=True, drop_last=False), 0)
    assert first != flat(make(kind(50), shuffle=True, drop_last=False, seed=4), 0)
    assert flat(make(kind(50), job="infer", shuffle=True)) == list(range(50)), "evaluation keeps the order"


def test_a_stream_is_shuffled_in_a_window():
    def order(window):
        return flat(make(Stream(50), shuffle=True, drop_last=False, shuffle_window=window))

    assert order(1) == list(range(50)) != order(10) != order(None)
    assert sorted(order(10)) == list(range(50)) and all(
        value < place + 10 for place, value in enumerate(order(10)[:40])
    )


def test_windows_of_blocks_are_shuffled_each_in_its_own_way():
    places = itertools.product((1, 2), (0, 1), (0, 1))
    orders = [tuple(blocks.shuffled(seed, epoch)(number, 9)) for seed, epoch, number in places]
    assert len(set(orders)) == 8 and {tuple(sorted(order)) for order in orders} == {tuple(range(9))}
    assert orders[0] == tuple(blocks.shuffled(1, 0)(0, 9))


class Gathering(Items):
    """A map-style reader that makes whole batches."""

    def gather(self, indices):
        self.gathered = True
        samples = [self[i] for i in indices]
        return [np.stack([sample[k] for sample in samples]) for k in range(len(samples[0]))]


class Changed(Gathering):
    """One whose subclass has other examples, which ``gather`` knows nothing of."""

    def __getitem__(self, index):
        return [item * 0 for item in super().__getitem__(index)]


@pytest.mark.parametrize("settings", [{}, {"drop_last": False}, {"shuffle": True, "drop_last": False}])
@pytest.mark.parametrize("begin", [0, 2])
def test_whole_batches_are_those_of_the_loader(settings, begin):
    ours, theirs = (list(make(kind(19), **settings)(3, begin)) for kind in (Gathering, Items))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_whole_batches_are_taken_where_they_are_true():
    dataset, changed = Gathering(8), Changed(8)
    assert flat(make(dataset)) == list(range(8)) and dataset.gathered
    assert set(flat(make(changed))) == {0} and not hasattr(changed, "gathered")
    with pytest.raises(UserError, match="a broken line.*KeyError at test_batches.py"):
        flat(make(Gathering(8, bad=5)))


@pytest.mark.parametrize("kind", [Items, Stream, Gathering])
def test_a_resumed_epoch_begins_after_the_batches_it_has_had(kind):
    batches = make(kind(), drop_last=False)(0, begin=1)
    assert [np.asarray(batch[1]).tolist() for batch in batches] == [[4, 5, 6, 7], [8, 9]]


def test_a_resumed_epoch_of_a_packages_own_loader():
    batches = CustomBatches(lambda: iter([["first"], ["second"], ["third"]]))
    assert list(batches(0, begin=1)) == [["second"], ["third"]] and len(list(batches(1))) == 3


def test_steps_are_counted_where_they_can_be():
    assert make(Items()).steps() == 2 and make(Items(), drop_last=False).steps() == 3
    assert make(Stream()).steps() is None


class Uncounted(Stream):
    def blocks(self, epoch, seed, apply):
        raise AssertionError("nothing is to be read yet")

    def row_num(self):
        raise AssertionError("all files would be read")


def test_a_streams_files_are_not_read_to_check_a_number_that_is_given(tmp_path):
    (tmp_path / "part").write_text("")
    settings = types.SimpleNamespace(
        **{**SETTINGS, "train_data_dir": str(tmp_path), "steps_per_epoch": 7}
    )  # fmt: skip
    given = {"runner.steps_per_epoch": 7}
    _, config = open_batches(lambda files, config: Uncounted(), settings, given, "train", paddle.CPUPlace())
    assert config == given


def test_worker_processes_give_every_example_once():
    batches = make(Items(50), shuffle=True, drop_last=False, num_workers=2)
    assert sorted(flat(batches)) == list(range(50))
    assert flat(batches) == flat(make(Items(50), shuffle=True, drop_last=False))


class Pids(Items):
    """Each example tells the process that read it."""

    def __getitem__(self, i):
        return [np.int64(i), np.int64(os.getpid())]


def test_num_workers_is_the_number_of_processes_that_read():
    assert set(flat(make(Pids(40)))) == {os.getpid()}
    for number in (1, 2):
        pids = set(flat(make(Pids(40), num_workers=number)))
        assert len(pids) == number and os.getpid() not in pids


def test_an_iterable_reader_that_does_not_shard_gets_no_workers(caplog):
    logger = logging.getLogger("engine")
    logger.addHandler(caplog.handler)
    batches = make(Stream(10), drop_last=False, num_workers=2)
    logger.removeHandler(caplog.handler)
    assert "num_workers" in caplog.text and flat(batches) == list(range(10))


@pytest.mark.parametrize("bad", [0, 5, 9])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Items, Stream])
def test_a_readers_exception_ends_in_one_message(kind, workers, bad):
    dataset = kind(10, bad=bad)
    dataset.shards_by_worker = True
    with pytest.raises(UserError) as caught:
        flat(make(dataset, drop_last=kind is Stream, num_workers=workers))
    for word in ("/train", str(bad), "a broken line", "KeyError", "test_batches.py"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "samples,words",
    [
        ([[np.zeros(2)], [np.zeros(3)]], "do not fit"),
        ([[np.array(["a"], object)]], "numbers"),
        ([np.zeros(2)], "list or tuple"),
    ],
)
def test_samples_that_make_no_batch_are_refused(samples, words):
    class Odd(IterableDataset):
        def __iter__(self):
            return iter(samples * 4)

    with pytest.raises(UserError, match=words):
        list(make(Odd())(0))


@pytest.mark.parametrize("kind", [Items, Stream])
def test_not_one_batch_is_an_error_that_says_why(kind):
    with pytest.raises(UserError) as caught:
        flat(make(kind(3)))
    assert "/train" in str(caught.value) and "4" in str(caught.value) and "drop_last" in str(caught.value)


@pytest.mark.parametrize("there", [True, False])
def test_where_there_are_no_data_the_readers_command_is_given(tmp_path, there):
    folder = tmp_path / "data"
    if there:
        folder.mkdir()
    settings, config = types.SimpleNamespace(test_data_dir=str(folder)), {"config_abs_dir": str(tmp_path)}
    for command in (None, "python get.py"):
        reader = type("RecDataset", (), {} if command is None else {"how_to_get_data": command})
        with pytest.raises(UserError) as caught:
            open_dataset(reader, settings, config, "infer")
        message = str(caught.value)
        assert str(folder) in message and "None" not in message
        assert message.endswith(f"To get the data, run in {tmp_path}: {command}") == (command is not None)


@pytest.mark.parametrize(
    "words,said",
    [
        ("{0}/a.txt: a line is broken", "{0}/a.txt: a line is broken"),
        ("{0}: no file", "{0}: no file"),
        ("{0}s: another folder", "reading {0}: {0}s: another folder"),
        ("a line is broken", "reading {0}: a line is broken"),
    ],
)
def test_a_readers_refusal_names_the_folder_once(tmp_path, words, said):
    (tmp_path / "a.txt").write_text("")
    words, said = words.format(tmp_path), said.format(tmp_path)

    def refuse(files, config):
        raise ValueError(words)

    settings = types.SimpleNamespace(train_data_dir=str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_dataset(refuse, settings, {}, "train")
    assert str(caught.value) == said
    for dataset in (Items(8, bad=5), Gathering(8, bad=5), Stream(8, bad=5)):
        getattr(dataset, "items", dataset).words = words.replace(str(tmp_path), "/train")
        with pytest.raises(UserError) as caught:
            flat(make(dataset))
        assert str(caught.value).count("/train") == said.count(str(tmp_path))


def test_a_path_that_the_system_names_is_said_once(tmp_path):
    for arguments in ((f"runner.out_vec_path: {tmp_path}",), ("reading", str(tmp_path))):
        with pytest.raises(UserError) as caught, user_errors(*arguments):
            open(tmp_path)
        assert str(caught.value).count(str(tmp_path)) == 1


class Ending(Items):
    """One whose process ends at an example."""

    def __getitem__(self, i):
        if i == self.bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.parametrize("kind", [Items, Stream])
def test_a_killed_worker_ends_in_one_message(kind):
    dataset = Ending(40, bad=21)
    if kind is Stream:
        dataset, dataset.items = Stream(), dataset
        dataset.shards_by_worker = True
    before = multiprocessing.active_children()
    said = "^reading /train: a worker process ended too soon[^\n]*num_workers[^\n]*$"
    with pytest.raises(UserError, match=said) as caught:
        flat(make(dataset, num_workers=2))
    assert_nothing_left(before, caught.value)


def assert_nothing_left(children, error=None):
    """Neither a worker process, nor an iterator of Paddle's in what an exception's traceback holds."""
    assert multiprocessing.active_children() == children
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            assert "_DataLoaderIterMultiProcess" not in {type(value).__name__ for value in frame.f_locals.values()}
        error = error.__cause__


class Blocks(Stream):
    def blocks(self, epoch, seed, apply):
        return apply(lambda begin: [np.array([item]) for item in self.items[begin]], range(len(self.items)))


@pytest.mark.parametrize("kind", [Items, Stream, Blocks])
def test_no_worker_outlives_the_batches_that_are_not_taken_to_their_end(kind):
    before, dataset = multiprocessing.active_children(), kind(40)
    dataset.shards_by_worker = True
    batches = make(dataset, num_workers=2)(0)
    next(batches)
    assert len(multiprocessing.active_children()) == len(before) + 2
    batches.close()
    assert_nothing_left(before)


@pytest.mark.parametrize("kind", [Items, Stream, Blocks])
def test_no_worker_outlives_a_failure_of_the_reader(kind):
    before, dataset = multiprocessing.active_children(), kind(40, bad=20)
    dataset.shards_by_worker = True
    with pytest.raises(UserError) as caught:
        flat(make(dataset, num_workers=2))
    assert_nothing_left(before, caught.value)


READER = """
import os, signal
import numpy as np
from paddle.io import Dataset, get_worker_info
class RecDataset(Dataset):
    def __init__(self, file_list, config):
        super().__init__()
    def __len__(self):
        return 64
    def __getitem__(self, i):
        if i == 40:
            assert get_worker_info() is not None
            END
        return [np.zeros([1, 36, 36], "float32"), np.int64(1), np.int64(2)]
"""


@pytest.mark.parametrize("tool", ["trainer", "static_trainer"])
@pytest.mark.parametrize(
    "end,words",
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ["worker process ended"]),
        ("raise KeyError('a broken line')", ["example 40", "a broken line", "KeyError at ending_reader.py"]),
    ],
    ids=["killed", "raising"],
)
def test_the_tools_end_when_a_worker_does(tool, end, words, tmp_path):
    """They end within TIMEOUT_S of ``run_tool``."""
    for path in [*ROOT.glob("*.py"), ROOT / "config.yaml"]:
        shutil.copy(path, tmp_path)
    (tmp_path / "ending_reader.py").write_text(READER.replace("END", end))
    data = small_data(tmp_path)
    overrides = ["runner.train_reader_path=ending_reader", "runner.num_workers=2", "runner.train_batch_size=8"]
    overrides += ["runner.shuffle=false", "hyper_parameters.expert_num=4", "runner.to_static=false"]
    process = run_tool(tool, tmp_path / "config.yaml", *data, *overrides, cwd=tmp_path)
    assert_refused(process, f"reading {tmp_path / 'train'}: ", *words)
