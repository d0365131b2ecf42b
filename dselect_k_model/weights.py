"""Which weights an example may have. Readers ask too, so this needs neither paddle nor numpy."""

LEAST, GREATEST = 1e-30, 1e30  # above 0: sums and quotients of such weights are normal numbers of float32
WORDS = f"0 or a number from {LEAST:g} to {GREATEST:g}"


def is_wrong(weight):
    """Mask of those that no example may have: ``weight`` is an array of floats; nan is wrong, too."""
    return ~((weight == 0) | (weight >= LEAST) & (weight <= GREATEST))
