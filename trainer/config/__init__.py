"""A sweep's YAML as typed sections, and its reference page."""
