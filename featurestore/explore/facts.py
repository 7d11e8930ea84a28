"""What one asks first of a store: text for a shell, JSON for machines.

No Pillow and no pandas, so that `store info` answers at once; cards for notebooks are in `cards`.
"""

import json

import numpy as np

from featurestore.counts import count_of
from featurestore.format.spec import POOLED
from featurestore.read.reader import Reader


def facts(store: Reader) -> dict[str, str]:
    """What one asks first of a store.

    Only ids, states and seals are read, and no seal is checked.
    """
    t = store.spec.tokens
    n = store.n_images
    rounded = "" if t.dtype == "float16" else f", patches rounded to {t.dtype}"
    rows = f"1 + {len(POOLED)} pooled"
    if store.spec.has_patches:
        rows = f"1 + {t.grid[0]} x {t.grid[1]}"
    # bytes are compared: to decode a million texts would take seconds
    cells_NW = np.ascontiguousarray(store.array("catalog/status")[:n])
    status_N = cells_NW.view(f"S{cells_NW.shape[1]}")[:, 0]
    has_no_seal_N = store.array("seal")[:n] == 0
    n_skipped = np.count_nonzero((status_N != b"") & (status_N != b"ok") & has_no_seal_N)

    pooled_only = "" if store.spec.has_patches else "; pooled only, no patch tokens"
    bits = f"; 16-bit photographs read as {t.bits} bits" if t.bits else ""
    return {
        "images": f"{count_of(n, 'image')} x {count_of(len(t.views), 'view')}, "
        f"{store.n_sealed} sealed / {n} total, "
        f"{n_skipped} skipped, room for {store.layout.n}",
        "tokens": f"{t.n_tiles} tile(s) x ({rows}) x {t.width} float16{rounded}{pooled_only}",
        "size": _size_text(store.size_bytes),
        "backbone": f"{t.model}, layers {list(t.layers)}",
        "tiles": f"{t.crop_and_fit}, {t.tile_height} x {t.tile_width} pixels, "
        f"{t.grid[0]} x {t.grid[1]} patches of {t.patch_size}{bits}",
        "views": ", ".join(t.view_names),
        "fingerprint": store.spec.fingerprint[:12],
    }


def store_text(store: Reader) -> str:
    """The facts, one a line."""
    return "\n".join(
        [
            f"FeatureStore {store.path}",
            *(f"  {name:<11}  {text}" for name, text in facts(store).items()),
        ]
    )


def store_json(store: Reader) -> str:
    """Spec, fingerprint and counts, for machines."""
    counts = {
        "path": str(store.path),
        "n_images": store.n_images,
        "n_sealed": store.n_sealed,
        "n_room": store.layout.n,
    }
    spec = json.loads(store.spec.to_json())
    return json.dumps(counts | spec, indent=1, ensure_ascii=False)


def _size_text(n_bytes: int) -> str:
    for unit, n_of_one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= n_of_one:
            return f"{n_bytes / n_of_one:.3g} {unit}"
    return f"{n_bytes:.3g} bytes"
