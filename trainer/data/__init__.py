"""From a store to batches: labels, folds, the stream, token rows."""
