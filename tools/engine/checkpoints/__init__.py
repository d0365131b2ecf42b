"""Checkpoints: folders on the disk, what is in them, which one is meant, and the run that writes them."""
