"""One epoch loop for training and evaluation, in both graphs. Imports no paddle and knows no files."""

import time

from engine.errors import NotFinite, UserError


def train(graph, batches, epochs, meter, after_epoch):
    """Train for ``epochs`` (an iterable of numbers), calling ``after_epoch(epoch)`` after each."""
    for epoch in epochs:
        graph.begin_epoch()
        _run(epoch, batches, graph.train_step, meter)
        graph.end_epoch()
        meter.close(epoch, graph.metrics())
        after_epoch(epoch)


def infer(graph, batches, epochs, meter, load, after_epoch):
    """Evaluate ``epochs``, calling ``load(epoch)`` before each and ``after_epoch(epoch)`` after it."""
    for epoch in epochs:
        load(epoch)
        graph.begin_evaluation()
        _run(epoch, batches, graph.infer_step, meter)
        meter.close(epoch, graph.metrics())
        after_epoch(epoch)


def _run(epoch, batches, take_step, meter):
    meter.begin()
    asked = time.perf_counter()
    for batch_id, batch in enumerate(batches(epoch)):
        loaded = time.perf_counter()
        try:
            step, examples = take_step(batch)
        except NotFinite as error:
            raise UserError(
                f"epoch {epoch}, batch {batch_id}: {error}. Training has stopped; the epochs saved "
                "before are as they were. A lower learning rate may help."
            ) from error
        done = time.perf_counter()
        meter.add(epoch, batch_id, step, examples, loaded - asked, done - loaded)
        asked = time.perf_counter()
