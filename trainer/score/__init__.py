"""Metrics, and the rules that change predictions after training."""
