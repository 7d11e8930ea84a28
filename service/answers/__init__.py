"""How a request is read and answered: parameters, bytes, ranges, tables, long computations."""
