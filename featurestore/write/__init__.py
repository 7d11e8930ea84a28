"""Making a store: the plan, the writer, and the build that fills it."""
