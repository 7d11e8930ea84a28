"""What surrounds every request: who may ask, limits of a connection, counts."""
