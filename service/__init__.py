"""A read-only HTTP service over stores and sweeps, described in docs/service.md."""
