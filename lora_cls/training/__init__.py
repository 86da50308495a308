"""Training one fold: losses, the loop, its checkpoints, and the two kinds of learner."""
