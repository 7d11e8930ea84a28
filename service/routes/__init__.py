"""The addresses, a file a kind."""
