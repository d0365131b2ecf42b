"""A package's ``RecDataset`` -> batches, an epoch at a time."""

import contextlib
import functools
import itertools
import logging
import os
from dataclasses import dataclass
from typing import Optional

import numpy as np
import paddle
from paddle.io import IterableDataset
from paddle.io.dataloader.collate import default_collate_fn

from engine import blocks, loader, spread
from engine.errors import UserError, prefixed, user_errors
from engine.interface import offered

LOG = logging.getLogger("engine")
SHUFFLE_BUFFER = 4096  # examples of a stream that are shuffled together, unless runner.shuffle_window is set
FOLDERS = {"train": "train_data_dir", "infer": "test_data_dir", "validate": "validation_data_dir"}  # job -> runner key


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
    folder, command = getattr(settings, FOLDERS[job]), offered(reader, "how_to_get_data")
    hint = f" To get the data, run in {config['config_abs_dir']}: {command}" if command else ""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(
            f"runner.{FOLDERS[job]}: {folder} cannot be read ({error.strerror}). Point it at the folder of the data."
            + hint
        ) from error
    if not names:
        raise UserError(f"{folder} is empty. Put the data there, or point the config at another folder.{hint}")
    with user_errors("reading", folder):
        return reader([os.path.join(folder, name) for name in names], config=config)


def open_batches(reader, settings, config, job):
    """(Batches of a reader over its data folder, the config for the package's wrapper); see ``Batches`` for errors."""
    batches = Batches(open_dataset(reader, settings, config, job), settings, job)
    given = settings.steps_per_epoch
    if given is None:
        config = {**config, "runner.steps_per_epoch": batches.steps()}  # for packages with a schedule
    elif job == "train" and batches.source.is_counted and batches.steps() != given:
        LOG.warning(
            "runner.steps_per_epoch is %d, but an epoch of the training data has %d steps. This key only feeds the "
            "learning-rate schedule; it does not limit the epoch. Remove it: the tools count the steps themselves.",
            given, batches.steps(),
        )  # fmt: skip
    return batches, config


@dataclass
class Options:
    """How examples become batches."""

    folder: str  # of the data, for messages
    batch_size: int
    drop_last: bool  # drop a last batch of fewer examples
    seed: Optional[int]  # None: do not shuffle
    run_seed: int  # runner.seed, shuffled or not
    window: Optional[int]  # runner.shuffle_window: how many examples of a stream are shuffled together
    workers: int  # processes that read; 0: this one
    processes: object  # of the job, among which the batches are spread: engine.processes.Alone or Several
    trains: bool
    by_rows: bool  # each process takes its rows of every batch; else whole batches in turn


class Batches:
    """Batches of a dataset: lists of arrays, each with the batch as its first dimension.

    Args:
        dataset: map-style or iterable.
        settings: from ``engine.keys.read_settings``.
        job: "train", "infer" or "validate".
        may_be_empty: an epoch without a batch is no mistake.
    """

    def __init__(self, dataset, settings, job, may_be_empty=False):
        self.trains, self.may_be_empty = job == "train", may_be_empty
        self.options = Options(
            folder=getattr(settings, FOLDERS[job]),
            batch_size=settings.train_batch_size if self.trains else settings.infer_batch_size,
            drop_last=settings.drop_last if self.trains else settings.infer_drop_last,
            seed=settings.seed if settings.shuffle and self.trains else None,
            run_seed=settings.seed,
            window=settings.shuffle_window,
            workers=_workers(dataset, settings.num_workers),
            processes=settings.processes,
            trains=self.trains,
            by_rows=self.trains,
        )
        self.source = _source(dataset, self.options)
        if settings.processes.number > 1:
            self._check_shares()

    def _check_shares(self):
        if self.trains and self.options.batch_size < self.options.processes.number:
            raise UserError(
                f"runner.train_batch_size is {self.options.batch_size}, but {self.options.processes.number} processes "
                "share a batch. Give each at least one example."
            )
        if not self.source.is_counted:
            return
        with user_errors("reading", self.options.folder):
            numbers = self.options.processes.gather(self.source.example_num())
        if len(set(numbers)) > 1:
            raise UserError(
                f"{self.options.folder}: it has {numbers[0]} examples for process 0, but "
                f"{next(n for n in numbers if n != numbers[0])} for another. Give all processes the same files."
            )

    def spread_by_rows(self):
        """From now on each process takes its rows of every batch, in an evaluation too."""
        self.options.by_rows = True

    def steps(self):
        """Number of batches in an epoch, or None if the reader does not say how many examples it has."""
        return self._steps

    @functools.cached_property
    def _steps(self):  # once: it may read all the data
        if not (self.trains or self.source.is_counted):
            return None
        with user_errors("reading", self.options.folder):
            examples = self.source.example_num()
        if examples is None:
            return None
        whole, rest = divmod(examples, self.options.batch_size)
        return whole + (rest > 0 and not self.options.drop_last)

    def __call__(self, epoch, begin=0):
        """Iterate the batches of an epoch.

        Args:
            epoch: decides the order, if it is shuffled.
            begin: how many batches to skip at the start.
        Yields:
            Of several processes, this one's rows of each batch in training, or if they spread by rows; else its
            batches, and None for each of another's. See ``spread``.
        Raises:
            UserError: the reader failed, or there is not a single batch.
        """
        count = 0
        for batch in self.source.batches(epoch, begin):
            count += 1
            if batch is None or isinstance(batch, spread.Copy):
                yield batch
                continue
            if not isinstance(batch, (list, tuple)):
                folder = self.options.folder
                raise UserError(f"reading {folder}: a sample must be a list or tuple, one item for each input.")
            yield list(batch)
        if not count and not begin and not self.may_be_empty:
            raise UserError(self._why_empty())

    def _why_empty(self):
        options, found = self.options, self.source.example_num()
        if found == 0:
            return f"{options.folder}: its files have no example. Give a folder with data."
        message = (
            f"{options.folder}: no full batch; it has {'an unknown number of' if found is None else found} examples, "
            f"and a batch has {options.batch_size}"
        )
        if options.drop_last:
            return f"{message}, partial ones being dropped. Set a smaller batch size, or drop_last to false."
        return f"{message}."


def _workers(dataset, number):
    """The number of processes that may read."""
    if number and isinstance(dataset, IterableDataset) and not offered(dataset, "shards_by_worker"):
        LOG.warning(
            "runner.num_workers is %d, but the reader is iterable and does not say that it shards "
            "(shards_by_worker = True): 0 is used, or every example would come %d times.",
            number, number,
        )  # fmt: skip
        return 0
    return number


def _source(dataset, options):
    """Where the batches come from: a hook of the reader for whole batches, or its single examples."""
    if isinstance(dataset, IterableDataset):
        if options.trains and offered(dataset, "augment") is not None:
            raise UserError(
                f"{type(dataset).__module__}: the reader is iterable and has augment, which is called for readers with "
                "__getitem__ alone. Augment in __iter__, and remove augment."
            )
        kind = blocks.BlockSource if _hook_is_current(dataset, "blocks", "__iter__") else StreamSource
    else:
        kind = GatherSource if _hook_is_current(dataset, "gather", "__getitem__") else IndexSource
    return kind(dataset, options)


def _hook_is_current(dataset, hook, examples):
    """Whether a dataset has a hook for batches; not if a subclass overrides only the method that gives examples."""
    defined = (set(vars(kind)) & {hook, examples} for kind in type(dataset).__mro__)
    return hook in next(filter(None, defined), ())


@dataclass
class IndexSource:
    """Examples by index, of a map-style dataset."""

    dataset: object
    options: Options
    is_counted = True  # whether ``example_num`` reads nothing

    def example_num(self):
        """Examples in an epoch, or None if that is unknown."""
        return len(self.dataset)

    def batches(self, epoch, begin):
        """Batches of an epoch, from ``begin`` on. The order depends on seed and epoch alone."""
        produce = functools.partial(self._produce, epoch, begin)
        return loader.read(produce, self.options.workers, self.options.folder)

    def _produce(self, epoch, begin):
        return map(functools.partial(self._fetch_own, epoch), loader.share(self._own(self._indices(epoch, begin))))

    def _indices(self, epoch, begin):
        size, seed, number = self.options.batch_size, self.options.seed, len(self.dataset)
        order = np.arange(number) if seed is None else np.random.default_rng([seed, epoch]).permutation(number)
        for at in range(begin * size, number, size):
            if at + size <= number or not self.options.drop_last:
                yield order[at : at + size]

    def _own(self, batches):
        processes = self.options.processes
        if not self.options.by_rows:
            return spread.own_batches(batches, processes)
        return (spread.own_rows([indices], processes) for indices in batches)

    def _fetch_own(self, epoch, indices):
        if indices is None:
            return None
        own = indices[0] if self.options.by_rows else indices
        batch = self._augmented(self.fetch(own), own, epoch)
        return spread.Copy(batch) if isinstance(indices, spread.Copy) else batch

    def _augmented(self, batch, indices, epoch):
        augment = offered(self.dataset, "augment") if self.options.trains else None
        if augment is None:
            return batch
        with loader.reading(self.options.folder, f"the augmentation of the examples {indices[:3].tolist()} ..."):
            return augment(batch, indices, epoch, self.options.run_seed)

    def fetch(self, indices):
        """The batch of these examples."""
        examples = []
        for i in indices.tolist():
            with loader.reading(self.options.folder, f"example {i}"):
                examples.append(self.dataset[i])
        return _collated(examples, self.options.folder)


class GatherSource(IndexSource):
    """Whole batches by the hook ``gather``, which saves the work on each example."""

    def fetch(self, indices):
        """The batch of these examples."""
        with loader.reading(self.options.folder, f"a batch of the examples {indices[:3].tolist()} ..."):
            return self.dataset.gather(indices)


@dataclass
class StreamSource:
    """Examples of an iterable dataset, shuffled within a window. Methods as of ``IndexSource``."""

    dataset: object
    options: Options
    is_counted = False

    def example_num(self):
        """None: unknown."""

    def batches(self, epoch, begin):
        """Batches of an epoch, from ``begin`` on."""
        options = self.options
        found = loader.read(functools.partial(self._batches, epoch), options.workers, options.folder)
        with contextlib.closing(found):
            own = spread.of_stream(found, options.processes, options.by_rows, options.folder)
            yield from itertools.islice(own, begin, None)

    def _batches(self, epoch):
        options, examples = self.options, self._examples()
        if options.seed is not None:
            rng = np.random.default_rng([options.seed, epoch])
            examples = _shuffled(examples, options.window or SHUFFLE_BUFFER, rng)
        while batch := list(itertools.islice(examples, options.batch_size)):
            if len(batch) == options.batch_size or not options.drop_last:
                yield _collated(batch, options.folder)

    def _examples(self):
        count = 0
        try:
            for example in self.dataset:
                yield example
                count += 1
        except Exception as error:
            raise loader.failed(error, self.options.folder, f"after {count} examples") from error


def _shuffled(examples, window, rng):
    """The examples in another order, keeping ``window`` of them at a time."""
    kept = list(itertools.islice(examples, window))
    for example in examples:
        i = rng.integers(len(kept))
        kept[i], example = example, kept[i]
        yield example
    for i in rng.permutation(len(kept)):
        yield kept[i]


def _collated(examples, folder):
    """Examples stacked into a batch of arrays."""
    with loader.reading(folder, "the examples of a batch do not fit together"):
        batch = default_collate_fn(examples)
    if isinstance(batch, list):
        batch = [np.asarray(item) if isinstance(item, paddle.Tensor) else item for item in batch]
        if any(np.asarray(item).dtype.kind == "O" for item in batch):
            raise UserError(prefixed("reading", folder, "the items of an example must be numbers or arrays of numbers"))
    return batch


class CustomBatches:
    """Batches of a package's own loader (``create_data_loader``): dicts or lists, as it gives them."""

    def __init__(self, load, processes, by_rows):
        self.load, self.processes, self.by_rows = load, processes, by_rows

    def steps(self):
        """None: unknown."""

    def __call__(self, epoch, begin=0):
        count = 0
        with user_errors("create_data_loader"):
            for batch in spread.of_stream(self.load(), self.processes, self.by_rows, "create_data_loader"):
                count += 1
                if count > begin:
                    yield batch
        if not count:
            raise UserError("the loader of create_data_loader gives no batch at all.")
