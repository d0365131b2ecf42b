"""The dynamic and the static graph behind the same methods, and what only they need."""
