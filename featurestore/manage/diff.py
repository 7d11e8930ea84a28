"""What differs between two stores: what they are, which images they hold, labels, and rows by their
checksums or values."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurestore.errors import list_some
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader

MOST = 20  # of one sort of difference are told one by one


@dataclass
class StoreDiff:
    """Differences in sentences, one a line; true when there is one."""

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and no difference of content."""

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *self.notes])


def diff_stores(a_path: Path | str, b_path: Path | str, tokens: bool = False) -> StoreDiff:
    """Compare two stores of either format, images by id and views by name.

    tokens : also read the patch tokens of rows whose checksums differ, and say by how much.
    """
    with open_reader(a_path) as a, open_reader(b_path) as b:
        diff = StoreDiff()
        diff.lines += [
            *_spec_lines(a, b),
            *_image_lines(a, b),
            *_cell_lines(a, b),
            *_row_lines(a, b, tokens),
            *_thumb_lines(a, b),
        ]
        made = {
            key: (a.spec.made_by.get(key), b.spec.made_by.get(key))
            for key in {**a.spec.made_by, **b.spec.made_by}
        }
        diff.notes += [
            f"made by: {key} {one!r} | {other!r}"
            for key, (one, other) in made.items()
            if one != other
        ]
        return diff


def _spec_lines(a: Reader, b: Reader) -> Iterator[str]:
    ours, theirs = (store.spec.tokens.model_dump(mode="json") for store in (a, b))
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            one, other = (
                store.get(key) if key != "views" else [view["name"] for view in store[key]]
                for store in (ours, theirs)
            )
            yield f"spec: {key} {one!r} | {other!r}" + (
                " (or their parameters)" if one == other else ""
            )
    for key in ("has_patches", "pooled_dtype", "thumb"):
        if getattr(a.spec, key) != getattr(b.spec, key):
            yield f"spec: {key} {getattr(a.spec, key)!r} | {getattr(b.spec, key)!r}"


def _image_lines(a: Reader, b: Reader) -> Iterator[str]:
    for one, other in ((a, b), (b, a)):
        missing = sorted(_ids(one, range(one.n_images)) - _ids(other, range(other.n_images)))
        if missing:
            yield f"images: {len(missing)} only in {one.path}:{list_some(missing, MOST)}"
        unsealed = sorted(
            (_ids(one, one.sealed) & _ids(other, range(other.n_images))) - _ids(other, other.sealed)
        )
        if unsealed:
            yield f"images: {len(unsealed)} sealed only in {one.path}:{list_some(unsealed, MOST)}"


def _ids(store: Reader, images) -> set[str]:
    return set(store.catalog["image_id"].iloc[list(images)])


def _cell_lines(a: Reader, b: Reader) -> Iterator[str]:
    one, other = (store.catalog.set_index("image_id") for store in (a, b))
    for name in [
        c
        for c in [*one.columns, *other.columns.difference(one.columns)]
        if c not in one or c not in other
    ]:
        yield f"catalog: column {name!r} only in {a.path if name in one else b.path}"
    both = one.index.intersection(other.index, sort=False)
    for name in one.columns.intersection(other.columns, sort=False):
        x, y = one.loc[both, name], other.loc[both, name]
        differs = ((x != y) & ~(x.isna() & y.isna())).to_numpy()
        if differs.any():
            pairs = zip(both[differs], x[differs].tolist(), y[differs].tolist(), strict=True)
            cells = [f"{image_id}: {one!r} | {other!r}" for image_id, one, other in pairs]
            yield f"catalog: {name!r} differs in {len(cells)} images:{list_some(cells, MOST)}"


def _row_lines(a: Reader, b: Reader, tokens: bool) -> Iterator[str]:
    """Rows of images sealed in both, under views of the same name."""
    places = dict(zip(a.catalog["image_id"].iloc[a.sealed], a.sealed.tolist(), strict=True))
    pairs = [
        (places[image_id], j)
        for image_id, j in zip(b.catalog["image_id"].iloc[b.sealed], b.sealed.tolist(), strict=True)
        if image_id in places
    ]
    views = [
        (v, b.view_names.index(name)) for v, name in enumerate(a.view_names) if name in b.view_names
    ]
    # rows of other shapes are other bytes in any case
    if not pairs or not views or _row_shape(a) != _row_shape(b):
        return
    (i_M, j_M), (v_W, w_W) = np.array(pairs).T, np.array(views).T
    differs_MW = a.array("crc32c")[i_M][:, v_W] != b.array("crc32c")[j_M][:, w_W]
    rows = [
        f"{a.catalog['image_id'][i_M[m]]}, {a.view_names[v_W[k]]}"
        + (_apart(a, b, (i_M[m], v_W[k]), (j_M[m], w_W[k])) if tokens else "")
        for m, k in np.argwhere(differs_MW)
    ]
    if rows:
        yield f"rows: {len(rows)} of {differs_MW.size} have other bytes:{list_some(rows, MOST)}"


def _thumb_lines(a: Reader, b: Reader) -> Iterator[str]:
    """Thumbnails of images sealed in both; their size is the spec's business."""
    if not a.spec.thumb or a.spec.thumb != b.spec.thumb:
        return
    places = dict(zip(b.catalog["image_id"].iloc[b.sealed], b.sealed.tolist(), strict=True))
    thumbs = a.array("thumbs"), b.array("thumbs")
    ids = [
        image_id
        for image_id, i in zip(a.catalog["image_id"].iloc[a.sealed], a.sealed.tolist(), strict=True)
        if image_id in places and not np.array_equal(thumbs[0][i], thumbs[1][places[image_id]])
    ]
    if ids:
        yield f"thumbs: {len(ids)} differ:{list_some(ids, MOST)}"


def _row_shape(store: Reader) -> list[tuple]:
    return [
        (array.name, array.shape[2:], array.dtype)
        for array in store.spec.arrays(1)
        if "view" in array.dims[1:2]
    ]


def _apart(a: Reader, b: Reader, one: tuple[int, int], other: tuple[int, int]) -> str:
    """How far the tokens of two rows are apart."""
    name = "patches" if a.spec.has_patches else "cls"
    arrays = [store.patches if name == "patches" else store.array("cls") for store in (a, b)]
    x, y = (
        np.asarray(array[int(i), int(v)], np.float32)
        for array, (i, v) in zip(arrays, (one, other), strict=True)
    )
    apart = np.abs(x - y)
    return (
        f": {name} at most {apart.max():.3g} apart, root mean square "
        f"{np.sqrt(np.mean(apart**2)):.3g} of {np.sqrt(np.mean(x**2)):.3g}"
    )
