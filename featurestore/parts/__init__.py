"""A build cut into parts: the plan, one part, and all of them made one store."""
