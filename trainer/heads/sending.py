"""Values made on the host, for a device that is still computing."""

from torch import Tensor, device


def on_device(host: Tensor, place: device) -> Tensor:
    """A tensor of the host on a device, without waiting for what that computes.

    CUDA copies from memory that is pinned while the host goes on; torch gives the block away again
    only after the copy.
    """
    if place.type == "cuda":
        host = host.pin_memory()
    return host.to(place, non_blocking=True)
