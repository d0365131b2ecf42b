"""A package's ``RecDataset`` -> batches, an epoch at a time."""

import functools
import itertools
import logging
import os

import numpy as np
import paddle
from paddle.io import BatchSampler, DataLoader, IterableDataset, Sampler
from paddle.io.dataloader.collate import default_collate_fn

from engine import blocks
from engine.errors import UserError, prefixed, user_errors
from engine.interface import offered
from engine.loader import Failure, encoded, ended_too_soon, failure_of, iterate, loader_settings

LOG = logging.getLogger("engine")
SHUFFLE_BUFFER = 4096  # examples an iterable reader is shuffled among, if runner.shuffle_window does not say
# The key of the data's folder, for what is done with them
FOLDERS = {"train": "train_data_dir", "infer": "test_data_dir", "validate": "validation_data_dir"}


def find_reader(package, settings, job):
    """The class ``RecDataset`` of the module that the config names."""
    key = "train_reader_path" if job == "train" else "infer_reader_path"
    module = getattr(settings, key)
    LOG.info("reader path:%s", module)
    return package.find(module, "RecDataset", f"the reader that runner.{key} names")


def open_dataset(reader, settings, config, job):
    """Build a reader over its data folder.

    Raises:
        UserError: the folder is missing or empty, or the reader refuses what is in it.
    """
    folder = getattr(settings, FOLDERS[job])
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(
            f"runner.{FOLDERS[job]}: {folder} cannot be read "
            f"({error.strerror}). Point it at the folder of the data." + _how_to_get(reader, config)
        ) from error
    if not names:
        raise UserError(
            f"{folder} is empty. Put the data there, or point the config at another folder."
            + _how_to_get(reader, config)
        )
    with user_errors("reading", folder):
        return reader([os.path.join(folder, name) for name in names], config=config)


def open_batches(reader, settings, config, job, place):
    """(Batches of a reader over its data folder, the config for the package's wrapper); see ``Batches`` for errors."""
    batches = Batches(open_dataset(reader, settings, config, job), settings, job, place)
    given = settings.steps_per_epoch
    if given is None:
        config = {**config, "runner.steps_per_epoch": batches.steps()}  # for packages with a schedule
    elif job == "train" and batches.knows_its_size and batches.steps() != given:
        LOG.warning(
            "runner.steps_per_epoch is %d, but an epoch of the training data has %d steps. It makes no epoch shorter, "
            "and misleads schedules: leave it out.",
            given, batches.steps(),
        )  # fmt: skip
    return batches, config


def _how_to_get(reader, config):
    command = offered(reader, "how_to_get_data")
    return f" To get the data, run in {config['config_abs_dir']}: {command}" if command else ""


class Batches:
    """Batches of a dataset: from its ``gather`` or ``blocks`` if it has one, else from Paddle's loader.

    ``gather`` gives a whole batch, a list of arrays with the batch as first dimension, and saves the
    loader's work on each example; so does ``blocks`` of an iterable reader. Worker processes are the loader's.

    An exception in a reader hangs Paddle's loader for ever, so it travels as data: the guarded
    dataset gives a ``Failure`` for a sample, and the collated batch carries its message to here.

    Args:
        dataset: map-style or iterable.
        settings: from ``engine.keys.read_settings``.
        job: "train", "infer" or "validate".
        place: where the batches go.
    """

    def __init__(self, dataset, settings, job, place):
        self.trains = train = job == "train"
        self.folder = getattr(settings, FOLDERS[job])
        self.batch_size = settings.train_batch_size if train else settings.infer_batch_size
        self.drop_last = settings.drop_last if train else settings.infer_drop_last
        shuffle = settings.shuffle and train
        self.place, self.workers = place, settings.num_workers
        if isinstance(dataset, IterableDataset):
            if self.workers and not offered(dataset, "shards_by_worker"):
                LOG.warning(
                    "runner.num_workers is %d, but the reader is iterable and does not say that it shards "
                    "(shards_by_worker = True): 0 is used, or every example would come %d times.",
                    self.workers,
                    self.workers,
                )
                self.workers = 0
            self._prepare_stream(dataset, settings, settings.seed if shuffle else None)
        else:
            gathers = _defines_last(dataset, "gather", "__getitem__") and not self.workers
            self.dataset = dataset if gathers else _GuardedItems(dataset)
            self.order = _Order(len(dataset), settings.seed if shuffle else None)
            self._load = self._from_gather if gathers else self._from_loader
            self._count_steps = self._steps_of_order

    def _prepare_stream(self, dataset, settings, seed):
        """An iterable reader: ``seed`` is None if it is not shuffled."""
        self.order, self.seed, self._count_steps = None, seed, lambda: None
        if _defines_last(dataset, "blocks", "__iter__"):
            self.dataset, self.window = dataset, settings.shuffle_window or blocks.WINDOW
            self._load = self._from_blocks
            if self.trains and offered(dataset, "row_num"):  # which may read all files
                self._count_steps = self._steps_of_rows
        else:
            self.dataset = _GuardedStream(dataset, self.batch_size, seed, settings.shuffle_window or SHUFFLE_BUFFER)
            self._load = self._from_loader

    @property
    def knows_its_size(self):
        """Whether ``steps`` reads nothing: a stream may have to read all of its files."""
        return self.order is not None

    def steps(self):
        """Number of batches in an epoch, or None where the reader does not say how many examples it has."""
        return self._steps

    @functools.cached_property
    def _steps(self):  # once: it may read all the data
        return self._count_steps()

    def _steps_of_order(self):
        self.order.begin = 0
        return len(self._sampler())

    def _steps_of_rows(self):
        with user_errors("reading", self.folder):
            rows = self.dataset.row_num()
        return None if rows is None else rows // self.batch_size + (not self.drop_last and rows % self.batch_size > 0)

    def _sampler(self):
        return BatchSampler(sampler=self.order, batch_size=self.batch_size, drop_last=self.drop_last)

    def __call__(self, epoch, begin=0):
        """Iterate the batches of an epoch: lists, each item with the batch as its first dimension.

        Args:
            epoch: decides the order, if it is shuffled.
            begin: how many batches to leave out at the start.

        Raises:
            UserError: the reader failed, or there is not a single batch.
        """
        count = 0
        for batch in self._load(epoch, begin):
            if failure_of(batch) is not None:
                raise UserError(prefixed("reading", self.folder, failure_of(batch)))
            if not isinstance(batch, (list, tuple)):
                raise UserError(f"reading {self.folder}: a sample must be a list or tuple, one item for each input.")
            count += 1
            yield list(batch)
        if not count and not begin:
            found = "an unknown number of" if self.order is None else len(self.order)
            raise UserError(
                f"{self.folder}: no full batch; it has {found} examples, and a batch has "
                f"{self.batch_size}"
                + (
                    ", partial ones being dropped. Set a smaller batch size, or drop_last to false."
                    if self.drop_last
                    else "."
                )
            )

    def _from_gather(self, epoch, begin):
        self.order.epoch, self.order.begin = epoch, begin * self.batch_size
        for indices in self._sampler():
            try:
                batch = self.dataset.gather(np.array(indices))
            except Exception as error:
                message = Failure(error, f"a batch of the examples {indices[:3]} ...").message
                raise UserError(prefixed("reading", self.folder, message)) from error
            yield batch

    def _from_blocks(self, epoch, begin):
        is_shuffled = self.seed is not None
        try:
            found = self.dataset.blocks(epoch, self.seed, blocks.in_order(self.workers, self.folder))
            if is_shuffled:
                found = blocks.windows(found, self.window)
            order_of = blocks.shuffled(self.seed, epoch) if is_shuffled else None
            yield from blocks.batches(found, self.batch_size, self.drop_last, begin, order_of)
        except UserError:
            raise
        except Exception as error:
            raise UserError(prefixed("reading", self.folder, blocks.message_of(error))) from error

    def _from_loader(self, epoch, begin):
        common = {"places": self.place, "collate_fn": _collate, **loader_settings(self.workers)}
        if self.order is None:
            self.dataset.epoch = epoch
            passed_over = begin
            loader = DataLoader(self.dataset, batch_size=self.batch_size, drop_last=self.drop_last, **common)
        else:
            self.order.epoch, self.order.begin = epoch, begin * self.batch_size
            passed_over = 0
            loader = DataLoader(self.dataset, batch_sampler=self._sampler(), **common)
        with ended_too_soon(self.folder):
            yield from itertools.islice(iterate(loader), passed_over, None)


def _defines_last(dataset, name, single):
    """Whether a reader has the hook ``name``; not if a subclass has changed ``single``, its examples, since."""
    definers = (set(vars(kind)) & {name, single} for kind in type(dataset).__mro__)
    return name in next(filter(None, definers), ())


class CustomBatches:
    """Batches of a package's own loader (``create_data_loader``): dicts or lists, as it gives them."""

    def __init__(self, loader):
        self.loader = loader

    def steps(self):
        """None: nobody knows."""

    def __call__(self, epoch, begin=0):
        count = 0
        with user_errors("create_data_loader"):
            for batch in self.loader():
                count += 1
                if count > begin:
                    yield batch
        if not count:
            raise UserError("the loader of create_data_loader gives no batch at all.")


class _Order(Sampler):
    """Indices of an epoch, from ``begin``: in order, or a permutation that depends on seed and epoch alone."""

    def __init__(self, size, seed):
        self.size, self.seed, self.epoch, self.begin = size, seed, 0, 0

    def __iter__(self):
        if self.seed is None:
            return iter(range(self.begin, self.size))
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.size)[self.begin :].tolist())

    def __len__(self):
        return self.size - self.begin


class _GuardedItems(paddle.io.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except Exception as error:
            return Failure(error, f"example {index}")


class _GuardedStream(IterableDataset):
    def __init__(self, dataset, batch_size, seed, window):
        self.dataset, self.batch_size, self.seed, self.window, self.epoch = dataset, batch_size, seed, window, 0

    def __iter__(self):
        samples = self._guarded()
        if self.seed is None:
            return samples
        return _shuffled(samples, self.window, np.random.default_rng([self.seed, self.epoch]))

    def _guarded(self):
        count = 0
        try:
            for sample in self.dataset:
                yield sample
                count += 1
        except Exception as error:
            failure = Failure(error, f"after {count} examples")
            for _ in range(self.batch_size):  # a whole batch, or drop_last would swallow it
                yield failure


def _shuffled(samples, window, rng):
    """Give the samples in another order, keeping ``window`` of them at a time; failures pass at once."""
    kept = []
    for sample in samples:
        if isinstance(sample, Failure):
            yield sample
        elif len(kept) < window:
            kept.append(sample)
        else:
            i = rng.integers(len(kept))
            kept[i], sample = sample, kept[i]
            yield sample
    for i in rng.permutation(len(kept)):
        yield kept[i]


def _collate(samples):
    failures = [sample for sample in samples if isinstance(sample, Failure)]
    if failures:
        return encoded(failures[0].message)
    try:
        batch = default_collate_fn(samples)
    except Exception as error:
        return encoded(Failure(error, "the examples of a batch do not fit together").message)
    if isinstance(batch, list) and any(np.asarray(x).dtype.kind == "O" for x in batch):
        return encoded("the items of an example must be numbers or arrays of numbers")
    return batch
