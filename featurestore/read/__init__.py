"""Reading a store: sources of bytes, and the reader above them."""
