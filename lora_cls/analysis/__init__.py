"""What can be redone from a run folder without loading a model."""
