"""One epoch loop for training and evaluation, in both graphs. Imports no paddle and knows no files."""

import time

from engine.errors import NotFinite


def train(graph, batches, first, epochs, meter, session):
    """Train from ``first`` = (epoch, batch, means so far) up to ``epochs``; the session saves, and may end the run."""
    for epoch in range(first[0], epochs):
        begin, means = first[1:] if epoch == first[0] else (0, None)
        meter.begin(means)
        graph.begin_epoch()
        _run(epoch, batches, graph.train_step, meter, begin, session)
        graph.end_epoch()
        session.after_epoch(epoch, meter.close(epoch, graph.metrics()))


def infer(graph, batches, epochs, meter, load, after_epoch):
    """Evaluate ``epochs``, calling ``load(epoch)`` before each and ``after_epoch(epoch)`` after it."""
    for epoch in epochs:
        load(epoch)
        meter.begin()
        graph.begin_evaluation()
        _run(epoch, batches, graph.infer_step, meter)
        meter.close(epoch, graph.metrics())
        after_epoch(epoch)


def _run(epoch, batches, take_step, meter, begin=0, session=None):
    asked = time.perf_counter()
    for batch_id, batch in enumerate(batches(epoch, begin), begin):
        loaded = time.perf_counter()
        if session is not None:
            session.before_step(epoch, batch_id)
        not_finite = None
        try:
            step, examples = take_step(batch)
        except NotFinite as error:
            not_finite = error
        else:
            meter.add(epoch, batch_id, step, examples, loaded - asked, time.perf_counter() - loaded)
        if session is not None:
            session.after_step(epoch, batch_id, not_finite)
        asked = time.perf_counter()
