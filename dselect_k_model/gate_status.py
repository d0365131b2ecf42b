"""What the log says of the gates: the experts that each task uses."""

import numpy as np

from dselect_k_model import processes


def experts_of_tasks(tasks, weights, over=""):
    """The experts that each task uses: title -> expert's number, from 0, as text -> weight.

    Args:
        tasks: list of Task.
        weights: by task, array [n].
        over: what a weight is a mean over, if it is one.
    """
    return {
        f"task {task.title} experts{over}": {str(i): float(w) for i, w in enumerate(of_task) if w > 0}
        for task, of_task in zip(tasks, weights)
    }


class MeanWeights:
    """Mean weights of per-example gates, over all examples of an evaluation, or over the last batch of training."""

    def __init__(self):
        self.sums, self.examples, self.training = (), 0, False

    def count(self, weights, examples, training):
        """Count a batch: by task, the experts' mean weights, array [n]; in training it replaces the last one."""
        sums = [np.asarray(w, "float64") * examples for w in weights]
        if self.examples and not training:
            sums, examples = [a + b for a, b in zip(self.sums, sums)], self.examples + examples
        self.sums, self.examples, self.training = sums, examples, training

    def of_tasks(self, tasks):
        """See ``experts_of_tasks``; {} before the first batch. All processes of a job must ask."""
        found = [counted for counted in processes.gathered((self.sums, self.examples, self.training)) if counted[1]]
        if not found:
            return {}
        sums, examples, training = zip(*found)
        over = f", mean weights over {'the last batch' if training[0] else 'all examples'}"
        return experts_of_tasks(tasks, [sum(totals) / sum(examples) for totals in zip(*sums)], over)
