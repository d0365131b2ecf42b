"""tools/engine/spread.py: the batches of a job among its processes. Threads stand for processes here."""

import types

import numpy as np
import pytest
from paddle.io import Dataset, IterableDataset

from engine import spread
from engine.batches import Batches, CustomBatches
from engine.errors import UserError
from support.several import in_threads

ROWS = 53


class Rows(Dataset):
    """Row i is the number i."""

    def __init__(self, rows=ROWS):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        return [np.array(i), np.array([i, i])]


class Stream(IterableDataset):
    def __init__(self, begin=0):
        self.begin = begin

    def __iter__(self):
        return iter([[np.array(i), np.array([i, i])] for i in range(self.begin, ROWS)])


class Shards(IterableDataset):
    """Gives process r the numbers from ``ends[r - 1]`` to ``ends[r]``, in blocks of seven."""

    shards_by_rank = True

    def __init__(self, rank, ends):
        self.range = ([0, *ends][rank], ends[rank])

    def __iter__(self):
        raise AssertionError("the tools ask for blocks")

    def blocks(self, epoch, seed, in_order):
        begin, end = self.range
        return (list(in_order(lambda i: [np.arange(i, min(i + 7, end))], [i]))[0] for i in range(begin, end, 7))

    def row_num(self):
        return ROWS


def batches_of(number, make, job="train", batch_size=8, drop_last=False, begin=0, shuffle=True):
    """By process, its batches in an epoch."""

    def work(processes):
        settings = types.SimpleNamespace(
            train_data_dir="/data", test_data_dir="/data", train_batch_size=batch_size, infer_batch_size=batch_size,
            drop_last=drop_last, infer_drop_last=drop_last, shuffle=shuffle, shuffle_window=None, num_workers=0, seed=1,
            processes=processes,
        )  # fmt: skip
        batches = Batches(make(processes.rank), settings, job)
        return batches.steps(), list(batches(3, begin))

    steps, found = zip(*in_threads(number, work))
    assert len(set(steps)) == 1
    return steps[0], found


def rows(batch):
    """The numbers in a batch that this process counts."""
    return [] if batch is None or isinstance(batch, spread.Copy) else np.asarray(batch[0]).tolist()


MAKE = {
    "by index": lambda rank: Rows(),
    "of a stream": lambda rank: Stream(),
    "of shards": lambda rank: Shards(rank, ends=[20, 31, 49, ROWS][:4]),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_each_example_comes_once_and_all_processes_take_equally_many_steps(name, number, drop_last):
    make = MAKE[name]
    if name == "of shards":
        ends = {1: [ROWS], 2: [40, ROWS], 3: [20, 20, ROWS], 4: [20, 31, 49, ROWS]}[number]
        make = lambda rank: Shards(rank, ends)  # noqa: E731
    steps, found = batches_of(number, make, drop_last=drop_last)
    assert {len(of_one) for of_one in found} == {6 if drop_last else 7}
    assert steps in (None, 6 if drop_last else 7)
    counted = sorted(row for of_one in found for batch in of_one for row in rows(batch))
    assert len(counted) == len(set(counted)) == (48 if drop_last else ROWS)
    for together in zip(*found):  # what a step of the job sees
        sizes = [len(batch[0]) for batch in together]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1
        assert sum(len(rows(batch)) for batch in together) == (8 if together[0] is not found[0][-1] or drop_last else 5)


@pytest.mark.parametrize("name", ["by index", "of a stream"])
def test_the_batches_of_a_job_are_those_of_one_process(name):
    (_, [alone]), (_, found) = (batches_of(number, MAKE[name]) for number in (1, 3))
    for whole, together in zip(alone, zip(*found)):
        assert sum((rows(batch) for batch in together), []) == rows(whole)


def test_a_batch_of_fewer_rows_than_processes_is_everyones_and_the_first_counts_it():
    _, found = batches_of(4, lambda rank: Rows(34))
    last = [of_one[-1] for of_one in found]
    assert [isinstance(batch, spread.Copy) for batch in last] == [False, True, True, True]
    assert len({tuple(np.asarray(batch[0]).tolist()) for batch in last}) == 1 and len(last[0][0]) == 2


@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_epoch_goes_on_with_the_same_batches(name):
    make = MAKE[name] if name != "of shards" else lambda rank: Shards(rank, [20, 31, ROWS])
    whole, rest = (batches_of(3, make, begin=begin)[1] for begin in (0, 4))
    for of_one, resumed in zip(whole, rest):
        assert [rows(batch) for batch in of_one[4:]] == [rows(batch) for batch in resumed]


@pytest.mark.parametrize("name", ["by index", "of a stream"])
def test_in_evaluation_whole_batches_go_round(name):
    (_, [alone]), (_, found) = (batches_of(number, MAKE[name], job="infer", batch_size=5) for number in (1, 3))
    for i, together in enumerate(zip(*found)):
        assert [batch is None for batch in together] == [rank != i % 3 for rank in range(3)]
        assert rows(together[i % 3]) == rows(alone[i])
    assert i == 10


def test_a_packages_own_loader_is_spread_too():
    def work(processes):
        load = lambda: ({"x": np.arange(i, i + 4)} for i in (0, 4))  # noqa: E731
        return [batch[0]["x"].tolist() for batch in CustomBatches(load, processes, by_rows=True)(0)]

    assert in_threads(2, work) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


@pytest.mark.parametrize(
    "make,words", [(lambda rank: Rows(50 + rank), "50 examples"), (lambda rank: Stream(rank), "shards_by_rank")]
)
def test_processes_with_different_data_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        batches_of(2, make)
