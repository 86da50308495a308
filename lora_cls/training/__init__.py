"""Learners: how a fold is trained, scored, saved and asked; heads, losses, the loop, its checkpoints, its costs."""
