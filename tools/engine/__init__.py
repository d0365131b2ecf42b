"""What the tools share. ``engine.array_files`` lies beside the model, which has it as ``array_files``."""

import os

VERSION = "0.1.0"  # of the tools, as in pyproject.toml
# Not sys.path: there a model package's own file of that name would be taken, or would find ours
__path__.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
