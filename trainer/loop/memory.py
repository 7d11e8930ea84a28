"""Memory of a training process: keep what is freed, every step needs the same buffers again."""

import ctypes

# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Tell glibc to hand out large buffers from its own heap and not give them back to the kernel.

    By default each one is mapped, faulted in page by page and unmapped at every step: about a
    quarter of a full-size step on two cores (bench_sweep). Does nothing where the C library has no
    mallopt. For the whole process, until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)  # no buffer is a map of its own
        mallopt(M_TRIM_THRESHOLD, -1)  # the end of the heap is never given back
