"""A folder that predicts offline: its contents, its texts, its wheel."""
