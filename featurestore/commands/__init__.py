"""The commands over stores, and what the commands of all packages share."""
