"""The heads that predict together, and the files that they write."""
