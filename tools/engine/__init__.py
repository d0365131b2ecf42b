"""What the tools share. They import no model, but for the two modules in shared.py."""

VERSION = "0.1.0"  # of the tools and of what pyproject.toml builds
