"""Compile the kernels, unless they are there: python -m dselect_k_model.kernels"""

import shutil
import sys

from dselect_k_model import kernels


def main():
    """Exit code 0: they are there; 1: one message says why they are not."""
    path = kernels.library()
    if path.is_file():
        return print(f"{path} is there already")
    if not kernels.SUPPORTED:
        sys.exit("the kernels are not compiled: they need Paddle 3.1.1 or later. All else works without them.")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        sys.exit("the kernels are not compiled: there is no g++ and no clang++. All else works without them.")
    try:
        kernels.build()
    except Exception as error:  # the compiler's, Paddle's, the system's
        sys.exit(f"the kernels are not compiled: {str(error).strip().splitlines()[-1]}. All else works without them.")
    print(f"compiled {path}")


if __name__ == "__main__":
    main()
