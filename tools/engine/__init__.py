VERSION = "0.1.0"  # of the tools, as in pyproject.toml
