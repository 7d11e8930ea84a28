"""A reader of stores that knows docs/format.md alone: numpy reads bytes at offsets, h5py gives
attributes and offsets."""

import hashlib
import json
import re
import struct
from math import prod
from pathlib import Path

import google_crc32c
import h5py
import numpy as np

SPEC_KEYS = {"tokens", "has_patches", "pooled_dtype", "thumb", "columns", "made_by", "fingerprint"}


class TextReader:
    """The store at a path."""

    def __init__(self, path: Path) -> None:
        self.path, self.is_hdf5 = path, path.is_file()
        attributes = self._hdf5_attributes() if self.is_hdf5 else _json(path)["attributes"]
        if attributes["format"] != "biomass-feature-store" or attributes["format_version"] > 2:
            raise ValueError(f"{path}: not a store of version 1 or 2")
        self.spec, self.tokens = (spec := json.loads(attributes["spec"])), spec["tokens"]
        if (
            spec.keys() != SPEC_KEYS
            or spec["fingerprint"] != hashlib.sha256(_tokens_text(attributes["spec"])).hexdigest()
        ):
            raise ValueError(
                f"{path}: a spec of another version, or its fingerprint is not its own"
            )
        self.nodes = [
            "catalog/"
            + re.sub(
                rb"[^A-Za-z0-9_-]", lambda m: b"~%02x" % m[0][0], column["name"].encode()
            ).decode()
            for column in spec["columns"]
        ]
        self.n = self._room()
        self.arrays = self._arrays()

    # sections 1 to 4: names and shapes

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        t, n = self.tokens, self.n
        patches = (t["tile_height"] // t["patch_size"]) * (t["tile_width"] // t["patch_size"])
        rows = (n, len(t["views"]), t["n_tiles"])
        arrays = {
            "cls": ((*rows, t["width"]), "<f2"),
            "patches": ((*rows, patches, t["width"]), "<f2"),
            "pooled": (
                (*rows, 5, t["width"]),
                "<f2" if self.spec["pooled_dtype"] == "float16" else "<f4",
            ),
            "stats": ((*rows[:2], 14), "<f8"),
            "thumbs": ((n, *(self.spec["thumb"] or ()), 3), "|u1"),
            "crc32c": (rows[:2], "<u4"),
            "seal": ((n,), "<u4"),
            "metadata_crc32c": ((1,), "<u4"),
        }
        absent = {"patches": not self.spec["has_patches"], "thumbs": self.spec["thumb"] is None}
        columns = {
            node: ((n,), "<f8") if column["kind"] == "number" else ((n, column["width"]), "|u1")
            for node, column in zip(self.nodes, self.spec["columns"], strict=True)
        }
        return {name: array for name, array in arrays.items() if not absent.get(name)} | columns

    def cells(self, name: str) -> np.ndarray:
        """A whole array other than `patches`."""
        shape, dtype = self.arrays[name]
        path, offset = (
            (self.path, self._hdf5_offset(name)) if self.is_hdf5 else (self._file(name, 0), 0)
        )
        return np.fromfile(path, dtype, prod(shape), offset=offset).reshape(shape)

    def patches(self, image: int, view: int) -> np.ndarray:
        """(T, P, D) of one row."""
        shape, dtype = self.arrays["patches"]
        row, n_bytes = image * shape[1] + view, prod(shape[2:]) * 2
        if self.is_hdf5:
            path, offset = self.path, self._hdf5_offset("patches") + row * n_bytes
        else:
            per_shard = (
                _json(self.path / "patches")["chunk_grid"]["configuration"]["chunk_shape"][0]
                * shape[1]
            )
            path, offset = (
                self._file("patches", row // per_shard),
                row % per_shard * (-(-(n_bytes + 4) // 4096) * 4096),
            )
        return np.fromfile(path, dtype, prod(shape[2:]), offset=offset).reshape(shape[2:])

    # section 4: padding

    def photo(self, image: int, view: int) -> np.ndarray:
        """(T, P) which patches hold any of the photograph."""
        t = self.tokens
        grid = re.fullmatch(r"grid:(\d+)x(\d+)", t["crop"])
        first = (1, 2) if t["crop"] == "halves" else (1, 1)
        rows, columns = (int(grid[1]), int(grid[2])) if grid else first
        a, b = columns * t["tile_width"], rows * t["tile_height"]
        w, h = (int(self.cells(f"catalog/{name}")[image]) for name in ("width", "height"))
        inner_a, inner_b = a, b
        if t.get("fit") == "pad" and abs(w / h / (a / b) - 1) > 0.05:
            if w * b > h * a:
                inner_b = max(1, h * a // w)
            else:
                inner_a = max(1, w * b // h)
        x, y = (a - inner_a) // 2, (b - inner_b) // 2
        pixels = np.zeros((b, a), bool)
        pixels[y : y + inner_b, x : x + inner_a] = True

        flip = t["views"][view]
        patch = t["patch_size"]
        masks = []
        for row, column in np.ndindex(rows, columns):
            top, left = row * t["tile_height"], column * t["tile_width"]
            tile = pixels[top : top + t["tile_height"], left : left + t["tile_width"]]
            if flip["transpose"]:
                tile = tile.T
            if flip["hflip"]:
                tile = tile[:, ::-1]
            if flip["vflip"]:
                tile = tile[::-1]
            n_down, n_across = tile.shape[0] // patch, tile.shape[1] // patch
            patches = tile.reshape(n_down, patch, n_across, patch)
            masks.append(patches.any((1, 3)).ravel())
        return np.array(masks)

    # section 5: what to believe

    def sealed(self) -> list[int]:
        """The images that are there."""
        ids, seals, crcs = self.cells("catalog/image_id"), self.cells("seal"), self.cells("crc32c")
        columns = [self.cells(node) for node in self.nodes] + (
            [self.cells("thumbs")] if self.spec["thumb"] else []
        )
        in_use = next((i for i in range(self.n) if ids[i, 0] == 0), self.n)
        start = self.spec["fingerprint"].encode()
        return [
            i
            for i in range(in_use)
            if seals[i]
            and seals[i]
            == (
                google_crc32c.value(
                    start
                    + struct.pack("<Q", i)
                    + b"".join(values[i].tobytes() for values in [*columns, crcs])
                )
                or 1
            )
        ]

    def is_as_committed(self, image: int, view: int) -> bool:
        """Whether a row's bytes give its checksum."""
        parts = [
            self.patches(image, view) if name == "patches" else self.cells(name)[image, view]
            for name in ("cls", "patches", "pooled", "stats")
            if name in self.arrays
        ]
        return (
            google_crc32c.value(b"".join(part.tobytes() for part in parts))
            == self.cells("crc32c")[image, view]
        )

    def metadata_crc(self) -> int:
        if not self.is_hdf5:
            folders = [
                self.path,
                self.path / "catalog",
                *(self.path / name for name in sorted(self.arrays)),
            ]
            return google_crc32c.value(
                b"".join((folder / "zarr.json").read_bytes() for folder in folders)
            )
        kept = bytearray(self.path.read_bytes())
        for offset, name in sorted(
            ((self._hdf5_offset(name), name) for name in self.arrays), reverse=True
        ):
            shape, dtype = self.arrays[name]
            del kept[offset : offset + prod(shape) * np.dtype(dtype).itemsize]
        return google_crc32c.value(bytes(kept))

    # sections 6 and 7: where the bytes are

    def _hdf5_attributes(self) -> dict:
        with h5py.File(self.path) as file:
            return {
                name: v.decode() if isinstance(v, bytes) else v for name, v in file.attrs.items()
            }

    def _hdf5_offset(self, name: str) -> int:
        with h5py.File(self.path) as file:
            dataset = file[name].id
            return (
                dataset.get_chunk_info_by_coord((0,) * 5).byte_offset
                if name == "patches"
                else dataset.get_offset()
            )

    def _file(self, name: str, shard: int) -> Path:
        return self.path / name / "c" / str(shard) / "/".join("0" for _ in self.arrays[name][0][1:])

    def _room(self) -> int:
        if not self.is_hdf5:
            return _json(self.path / "seal")["shape"][0]
        with h5py.File(self.path) as file:
            return file["seal"].shape[0]


def _json(folder: Path) -> dict:
    return json.loads((folder / "zarr.json").read_text())


def _tokens_text(spec: str) -> bytes:
    """The text of `tokens`, cut from that of the spec: it comes last."""
    return spec.rpartition(',"tokens":')[2][:-1].encode()
