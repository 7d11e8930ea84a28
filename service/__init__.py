"""A read-only HTTP service over stores and sweeps; what it answers is written down in
docs/service.md."""
