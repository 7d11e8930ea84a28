"""After training: comparisons, the choice of a point, baselines, reports."""
