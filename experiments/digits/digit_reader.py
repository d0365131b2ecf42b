"""Four tasks on Multi-MNIST: the top-left digit, whether it is even, and the same for the bottom-right digit."""

import multiMNIST_reader


class RecDataset(multiMNIST_reader.RecDataset):
    """Two more labels than ``multiMNIST_reader`` gives: float32, 1 for an even digit, 0 for an odd one."""

    def gather(self, indices):
        """[images, left digits, 1 where they are even, right digits, 1 where they are even]."""
        images, left, right = super().gather(indices)
        return [images, left, _even(left), right, _even(right)]


def _even(digits):
    return (digits % 2 == 0).astype("float32")
