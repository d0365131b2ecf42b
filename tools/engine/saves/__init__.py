"""What a training leaves on the disk: saved folders, what is in them, and how a run is resumed."""
