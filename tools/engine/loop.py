"""One epoch loop for training and evaluation, in both graphs. Imports no paddle and knows no files."""

import time

from engine.errors import NotFinite, UserError


def train(graph, batches, first, epochs, meter, session, validate=None):
    """Train from ``first`` up to ``epochs``. The session writes checkpoints, and may end the run.

    Args:
        first: (epoch, batch, what the epoch has counted so far, for the meter and for the graph).
        validate: (epoch) -> the metrics of the validation, called at the end of each epoch. Or None.
    """
    for epoch in range(first[0], epochs):
        if session.is_over(epoch):
            break
        begin, *so_far = first[1:] if epoch == first[0] else (0, None, None)
        meter.begin(so_far[0])
        graph.begin_epoch(so_far[1])
        with meter.on_screen(epoch, begin):
            _take_steps(epoch, batches, graph, graph.train_step, meter, begin, session)
        graph.end_epoch()
        numbers = meter.close(epoch, graph.metrics(), graph.status())
        session.after_epoch(epoch, numbers, None if validate is None else validate(epoch))


def infer(graph, batches, epochs, meter, load, after_epoch):
    """Evaluate ``epochs``, calling ``load(epoch)`` before each and ``after_epoch(epoch)`` after it.

    Returns:
        epoch -> its metrics, name -> number.
    """
    numbers = {}
    for epoch in epochs:
        load(epoch)
        evaluate(graph, batches, epoch, meter)
        numbers[epoch] = meter.close(epoch, graph.metrics(), graph.status())
        after_epoch(epoch)
    return numbers


def evaluate(graph, batches, epoch, meter):
    """Evaluate on all batches once; ``meter`` and ``graph.metrics()`` have the numbers."""
    meter.begin()
    graph.begin_evaluation()
    with meter.on_screen(epoch):
        _take_steps(epoch, batches, graph, graph.infer_step, meter)
    graph.processes.wait()


def _loaded(batches, epoch, begin, session):
    """The batches. In training the session seeds before each is loaded."""
    found, batch_id = iter(batches(epoch, begin)), begin
    while True:
        if session is not None:
            session.before_batch(epoch, batch_id)
        try:
            batch = next(found)
        except StopIteration:
            return
        yield batch
        batch_id += 1


def _take_steps(epoch, batches, graph, take_step, meter, begin=0, session=None):
    asked = time.perf_counter()
    for batch_id, batch in enumerate(_loaded(batches, epoch, begin, session), begin):
        loaded = time.perf_counter()
        if batch is None:
            graph.leave_to_another()
            meter.add_of_another(epoch, batch_id, graph)
            asked = time.perf_counter()
            continue
        if session is not None:
            session.before_step(epoch, batch_id)
        not_finite = None
        try:
            step, examples = take_step(batch)
        except NotFinite as error:
            not_finite = error
        except MemoryError as error:  # Paddle's own failures to allocate come as this too
            raise UserError(
                f"epoch {epoch}, batch {batch_id}: out of memory in this step. "
                "Set a smaller batch size. Earlier checkpoints are untouched."
            ) from error
        else:
            graph.processes.count_step()
            meter.add(epoch, batch_id, step, examples, loaded - asked, time.perf_counter() - loaded)
        if session is not None:
            session.after_step(epoch, batch_id, not_finite)
        asked = time.perf_counter()
