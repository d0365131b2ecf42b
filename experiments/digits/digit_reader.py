"""Four tasks on Multi-MNIST: which digit is at the top left, whether it is even, and both of the one at the right."""

import multiMNIST_reader


class RecDataset(multiMNIST_reader.RecDataset):
    """Two labels more than that of ``multiMNIST_reader``: float32, 1 for an even digit, 0 for an odd one."""

    def gather(self, indices):
        """[images, left digits, 1 where they are even, right digits, 1 where they are even]."""
        images, left, right = super().gather(indices)
        return [images, left, _even(left), right, _even(right)]


def _even(digits):
    return (digits % 2 == 0).astype("float32")
