"""What a store is on disk: its spec, where its bytes lie, and the two formats."""
