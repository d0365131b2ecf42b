"""tools/engine/{batches,blocks,loader}.py: every example once, in the right order; a failing reader never hangs."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types

import numpy as np
import pytest
from paddle.io import Dataset, IterableDataset, get_worker_info

from engine.batches import Batches, CustomBatches, open_batches, open_dataset
from engine.errors import UserError, user_errors
from engine.processes import Alone
from support import ROOT, seeds
from support.toolbox import TIMEOUT_S, assert_refused, copy_model, run_tool, small_data


@pytest.fixture(autouse=True)
def _no_hang():
    """A reader's exception hangs Paddle's own loader for ever; here that would fail the test."""

    def give_up(*_):
        raise AssertionError(f"hung for {TIMEOUT_S} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TIMEOUT_S)
    yield
    signal.alarm(0)


class Items(Dataset):
    """A map-style reader of (number, number, process that read it), which fails at the example ``bad``."""

    def __init__(self, size=10, bad=None, error=None):
        self.size, self.bad, self.error = size, bad, error or KeyError("a broken line")

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if i == self.bad:
            self.fail()
        return [np.float32(i), np.int64(i), np.int64(os.getpid())]

    def fail(self):
        raise self.error


class Gather(Items):
    """One that gives whole batches."""

    def gather(self, indices):
        self.gathered = True
        return [np.stack(items) for items in zip(*(self[int(i)] for i in indices))]


class Stream(IterableDataset):
    """An iterable one, which shards by worker."""

    shards_by_worker = True

    def __init__(self, *args, items=Items):
        self.items = items(*args)

    def __iter__(self):
        worker = get_worker_info()
        share = (worker.id, None, worker.num_workers) if worker else (0, None)
        return (self.items[i] for i in itertools.islice(range(len(self.items)), *share))


class Blocks(Stream):
    """One that gives blocks of 4 rows, always in the same order."""

    def blocks(self, epoch, seed, apply):
        return apply(self.block, range(0, len(self.items), 4))

    def block(self, begin):
        rows = [self.items[i] for i in range(begin, min(begin + 4, len(self.items)))]
        return [np.stack(items) for items in zip(*rows)]


KINDS = [Items, Gather, Stream, Blocks]
SETTINGS = {
    "train_data_dir": "/train", "test_data_dir": "/test", "train_batch_size": 4, "infer_batch_size": 4,
    "drop_last": True, "infer_drop_last": False, "shuffle": False, "shuffle_window": None, "num_workers": 0, "seed": 3,
    "processes": Alone(),
}  # fmt: skip


def make(dataset, job="train", **settings):
    return Batches(dataset, types.SimpleNamespace(**{**SETTINGS, **settings}), job)


def numbers(batches, epoch=0, item=1):
    return [[int(x) for x in batch[item]] for batch in batches(epoch)]


def flat(batches, epoch=0, item=1):
    return [i for batch in numbers(batches, epoch, item) for i in batch]


@pytest.mark.parametrize("kind", KINDS)
def test_training_drops_the_partial_batch_and_evaluation_keeps_it(kind):
    full, partial = [[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9]]
    assert numbers(make(kind())) == numbers(make(kind(), job="infer", infer_drop_last=True)) == full
    assert numbers(make(kind(), drop_last=False)) == numbers(make(kind(), job="infer")) == full + partial
    assert [b[1].tolist() for b in make(kind(), drop_last=False)(0, begin=1)] == full[1:] + partial, "resumed"


def epoch_order(kind, *at, shuffle=True, **settings):
    epoch, seed = at
    return flat(make(kind(24), shuffle=shuffle, drop_last=False, seed=seed, **settings), epoch)


ORDERS = {
    "examples": (Items, {}), "examples, gathered": (Gather, {}), "examples, by workers": (Items, {"num_workers": 2}),
    "a stream": (Stream, {}), "a stream in a window": (Stream, {"shuffle_window": 6}),
    "a stream, by workers": (Stream, {"num_workers": 2, "shuffle_window": 6}),
    "rows of one window": (Blocks, {}), "rows within each window": (Blocks, {"shuffle_window": 4}),
}  # fmt: skip


@pytest.mark.parametrize("kind,settings", ORDERS.values(), ids=ORDERS)
def test_each_epoch_has_an_order_of_its_own_that_a_seed_reproduces(kind, settings):
    seed, epochs = seeds.seeded(3), range(4 if settings.get("num_workers") else 8)
    plain = epoch_order(kind, 0, seed, shuffle=False, **settings)
    orders = [epoch_order(kind, epoch, seed, **settings) for epoch in epochs]
    assert all(sorted(order) == list(range(24)) for order in [plain, *orders]), "each example once"
    assert len({tuple(order) for order in orders}) >= 4
    assert orders == [epoch_order(kind, epoch, seed, **settings) for epoch in epochs], "the same again"
    assert orders != [epoch_order(kind, epoch, seed + 1, **settings) for epoch in epochs], "another seed"
    assert epoch_order(kind, 2, seed, shuffle=False, **settings) == plain


def test_orders_do_not_depend_on_the_hooks_or_the_workers():
    for one, other in (("examples", "examples, gathered"), ("examples", "examples, by workers")):
        (a, keys), (b, other_keys) = ORDERS[one], ORDERS[other]
        assert epoch_order(a, 1, 3, **keys) == epoch_order(b, 1, 3, **other_keys)
    assert epoch_order(Blocks, 1, 3, shuffle_window=8) == epoch_order(Blocks, 1, 3, shuffle_window=8, num_workers=2)
    assert flat(make(Items(24), job="infer", shuffle=True)) == list(range(24)), "evaluation is never shuffled"


def test_a_stream_is_shuffled_within_its_window():
    narrow = epoch_order(Stream, 0, 3, shuffle_window=5)
    assert epoch_order(Stream, 0, 3, shuffle_window=1) == list(range(24)) != narrow
    assert all(value < place + 5 for place, value in enumerate(narrow[:19]))


class Augmented(Items):
    """One whose training examples become example + 100 x epoch + 1000 x seed."""

    def augment(self, batch, indices, epoch, seed):
        assert batch[1].tolist() == indices.tolist()
        return [batch[0], batch[1] + 100 * epoch + 1000 * seed, batch[2]]


@pytest.mark.parametrize("kind", [Augmented, type("Gathered", (Augmented, Gather), {})])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_reader_augments_in_training_alone(kind, workers):
    batches = make(kind(12), num_workers=workers)
    assert flat(batches, epoch=2) == [3200 + i for i in range(12)]
    assert [batch[1].tolist() for batch in batches(1, begin=2)] == [[3108, 3109, 3110, 3111]], "resumed"
    shuffled = make(kind(12), num_workers=workers, shuffle=True)
    assert sorted(flat(shuffled, epoch=1)) == [3100 + i for i in range(12)]
    for job in ("infer", "validate"):
        assert flat(make(kind(12), job=job, validation_data_dir="/validation"), epoch=2) == [*range(12)]


@pytest.mark.parametrize("kind", [Stream, Blocks])
def test_an_iterable_reader_that_would_not_be_augmented_is_refused(kind):
    dataset = type("Augmenting", (kind,), {"augment": Augmented.augment})(8)
    with pytest.raises(UserError, match="the reader is iterable and has augment, which is called for readers with"):
        make(dataset)
    assert flat(make(dataset, job="infer")) == [*range(8)]


def test_gather_is_ignored_when_getitem_is_overridden():
    class Changed(Gather):
        def __getitem__(self, index):
            return [item * 0 for item in super().__getitem__(index)]

    dataset, changed = Gather(8), Changed(8)
    assert flat(make(dataset)) == list(range(8)) and dataset.gathered
    assert set(flat(make(changed))) == {0} and not hasattr(changed, "gathered")


def test_a_packages_own_loader_resumes_too():
    batches = CustomBatches(lambda: iter([["first"], ["second"], ["third"]]), Alone(), by_rows=True)
    assert list(batches(0, begin=1)) == [["second"], ["third"]] and len(list(batches(1))) == 3


def test_steps_are_counted_if_the_reader_can_be_counted():
    assert make(Items()).steps() == 2 and make(Items(), drop_last=False).steps() == 3
    assert make(Stream()).steps() is None and make(Blocks()).steps() is None
    Counted = type("Counted", (Blocks,), {"row_num": lambda self: 10})
    assert make(Counted()).steps() == 2 and make(Counted(), job="infer").steps() is None


def test_a_given_number_of_steps_is_checked_unless_that_reads_all_files(tmp_path, caplog):
    (tmp_path / "part").write_text("")

    def refuse(self, *_):
        raise AssertionError("all files would be read")

    settings = types.SimpleNamespace(**{**SETTINGS, "train_data_dir": str(tmp_path), "steps_per_epoch": 7})
    given = {"runner.steps_per_epoch": 7}
    for kind, warnings in ((type("Uncounted", (Blocks,), {"row_num": refuse, "blocks": refuse}), 0), (Items, 1)):
        _, config = open_batches(lambda files, config, kind=kind: kind(), settings, given, "train")
        assert config == given and caplog.text.count("runner.steps_per_epoch is 7, but an epoch") == warnings


@pytest.mark.parametrize("kind", KINDS)
def test_num_workers_is_the_number_of_processes_that_read(kind):
    assert set(flat(make(kind(40)), item=2)) == {os.getpid()}
    for number in (1, 2):
        batches = make(kind(40), num_workers=number, drop_last=False)
        pids = set(flat(batches, item=2))
        assert len(pids) == number and os.getpid() not in pids
        assert sorted(flat(batches)) == list(range(40))


def test_an_iterable_reader_that_does_not_shard_gets_no_workers(caplog):
    dataset = Stream(10)
    dataset.shards_by_worker = False
    assert flat(make(dataset, drop_last=False, num_workers=2)) == list(range(10)) and "num_workers" in caplog.text


@pytest.mark.parametrize("workers,bad", [(0, 9), (2, 0), (2, 9)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_readers_exception_is_one_message_and_leaves_no_worker(kind, workers, bad):
    before = multiprocessing.active_children()
    with pytest.raises(UserError) as caught:
        flat(make(kind(10, bad), drop_last=kind is Stream, num_workers=workers))
    for word in ("/train", "a broken line", "KeyError at test_batches.py"):
        assert word in str(caught.value)
    assert kind is Blocks or (kind is Stream and workers) or str(bad) in str(caught.value)
    assert_nothing_left(before, caught.value)


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


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_without_a_batch_is_an_error_that_says_why(kind):
    with pytest.raises(UserError) as caught:
        flat(make(kind(3)))
    assert "/train" in str(caught.value) and "4" in str(caught.value) and "drop_last" in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_the_message_for_missing_data_gives_the_readers_command(tmp_path, exists):
    folder = tmp_path / "data"
    if exists:
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
    "words,message",
    [
        ("{0}/a.txt: a line is broken", "{0}/a.txt: a line is broken"),
        ("{0}s: another folder", "reading {0}: {0}s: another folder"),
        ("a line is broken", "reading {0}: a line is broken"),
    ],
)
def test_a_readers_message_names_the_folder_once(tmp_path, words, message):
    (tmp_path / "a.txt").write_text("")

    def refuse(files, config):
        raise ValueError(words.format(tmp_path))

    with pytest.raises(UserError) as caught:
        open_dataset(refuse, types.SimpleNamespace(train_data_dir=str(tmp_path)), {}, "train")
    assert str(caught.value) == message.format(tmp_path)
    for kind in KINDS:
        with pytest.raises(UserError) as caught:
            flat(make(kind(8, 5, ValueError(words.format("/train")))))
        assert str(caught.value).count("/train") == message.count("{0}")


def test_a_path_in_the_systems_message_is_named_once(tmp_path):
    for arguments in ((f"runner.out_vec_path: {tmp_path}",), ("reading", str(tmp_path))):
        with pytest.raises(UserError) as caught, user_errors(*arguments):
            open(tmp_path)
        assert str(caught.value).count(str(tmp_path)) == 1


# ---------------------------------------------------------------- worker processes


KILLED = """
import itertools, multiprocessing, os, sys
sys.path.insert(0, sys.argv[1])
from engine import loader
found = loader.read(itertools.count, 2, "/data")
next(found)
with open("workers", "w") as file:
    file.write(" ".join(str(process.pid) for process in multiprocessing.active_children()))
os._exit(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Paddle has no worker processes")
def test_the_workers_of_a_tool_that_was_killed_end_too(tmp_path):
    with open(tmp_path / "log", "w") as log:
        program = [sys.executable, "-c", KILLED, ROOT / "tools"]
        process = subprocess.run(program, cwd=tmp_path, stdout=log, stderr=log, timeout=TIMEOUT_S)
    workers = (tmp_path / "workers").read_text().split()
    assert process.returncode == 1 and len(workers) == 2, (tmp_path / "log").read_text()
    until = time.monotonic() + TIMEOUT_S / 2
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < until, "a worker waits for ever"
        time.sleep(0.1)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Dying(Items):
    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


def assert_nothing_left(children, error=None):
    """Neither a worker process, nor an iterator of Paddle's in what an exception's traceback holds."""
    assert multiprocessing.active_children() == children
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            assert "_DataLoaderIterMultiProcess" not in {type(value).__name__ for value in frame.f_locals.values()}
        error = error.__cause__


@pytest.mark.parametrize("dataset", [Dying(40, 21), Stream(40, 21, items=Dying)], ids=["items", "stream"])
def test_a_killed_worker_is_one_message(dataset):
    before = multiprocessing.active_children()
    message = "^reading /train: a worker process ended too soon[^\n]*num_workers[^\n]*$"
    with pytest.raises(UserError, match=message) as caught:
        flat(make(dataset, num_workers=2))
    assert_nothing_left(before, caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_end_with_an_epoch_that_is_abandoned(kind):
    before = multiprocessing.active_children()
    batches = make(kind(40), num_workers=2)(0)
    next(batches)
    assert len(multiprocessing.active_children()) == len(before) + 2
    batches.close()
    assert_nothing_left(before)


READER = """
import os, signal
import multiMNIST_reader
class RecDataset(multiMNIST_reader.RecDataset):
    def gather(self, indices):
        if 40 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gather(indices)
"""


def test_a_tool_ends_when_a_worker_does(tmp_path):
    """Within TIMEOUT_S of ``run_tool``."""
    copy_model(tmp_path)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    (tmp_path / "ending_reader.py").write_text(READER)
    overrides = ["runner.train_reader_path=ending_reader", "runner.num_workers=2", "runner.train_batch_size=8"]
    overrides += ["runner.shuffle=false", "hyper_parameters.expert_num=4", "runner.to_static=false"]
    process = run_tool("trainer", tmp_path / "config.yaml", *small_data(tmp_path), *overrides, cwd=tmp_path)
    assert_refused(process, f"reading {tmp_path / 'train'}: ", "worker process ended")


def in_small_shared_memory(size, code, cwd=None):
    """The finished Python process of some code that sees a /dev/shm of this size, as containers have."""
    words = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    run = subprocess.run(
        [*words, sys.executable, *map(str, code)], cwd=cwd, capture_output=True, timeout=TIMEOUT_S, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    # Paddle's handler in a worker that a signal ends writes the 0 behind its text too, before whatever line comes next.
    run.stderr = run.stderr.replace("\0", "")
    return run


@pytest.fixture(scope="module")
def needs_a_name_space():
    if shutil.which("unshare") is None or in_small_shared_memory("64k", ["-c", ""]).returncode:
        pytest.skip("a /dev/shm of one's own cannot be mounted")


@pytest.mark.parametrize(
    "size,words", [("4k", "a semaphore cannot be made"), ("64k", "ended too soon"), ("64m", None)]
)  # fmt: skip
def test_too_little_shared_memory_is_one_message(size, words, tmp_path, needs_a_name_space):
    overrides = [*small_data(tmp_path), "runner.train_batch_size=32", "runner.num_workers=2", "runner.epochs=1"]
    tool = [ROOT / "tools" / "static_trainer.py", "-m", ROOT / "config.yaml", "-o", *overrides]
    run = in_small_shared_memory(size, tool, cwd=tmp_path)
    if words is None:
        assert run.returncode == 0, run.stderr
    else:
        assert_refused(run, words, "/dev/shm, which has 0.", "docker run --shm-size", "runner.num_workers to 0")
