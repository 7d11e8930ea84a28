"""Training: points, passes, the loop over steps, checkpoints, results."""
