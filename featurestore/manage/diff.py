"""What differs between two stores: spec, images, labels, and rows by checksum or value."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurestore.counts import count_of
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
        diff.lines += _spec_lines(a, b)
        diff.lines += _image_lines(a, b)
        diff.lines += _cell_lines(a, b)
        diff.lines += _row_lines(a, b, tokens)
        diff.lines += _thumb_lines(a, b)
        for key in {**a.spec.made_by, **b.spec.made_by}:
            one = a.spec.made_by.get(key)
            other = b.spec.made_by.get(key)
            if one != other:
                diff.notes.append(f"made by: {key} {one!r} | {other!r}")
        return diff


def _spec_lines(a: Reader, b: Reader) -> Iterator[str]:
    ours = a.spec.tokens.model_dump(mode="json")
    theirs = b.spec.tokens.model_dump(mode="json")
    for key in {**ours, **theirs}:
        one = ours.get(key)
        other = theirs.get(key)
        if one == other:
            continue
        if key == "views":
            one = [view["name"] for view in one]
            other = [view["name"] for view in other]
        same_names = " (or their parameters)" if one == other else ""
        yield f"spec: {key} {one!r} | {other!r}{same_names}"
    for key in ("has_patches", "pooled_dtype", "thumb"):
        if getattr(a.spec, key) != getattr(b.spec, key):
            yield f"spec: {key} {getattr(a.spec, key)!r} | {getattr(b.spec, key)!r}"


def _image_lines(a: Reader, b: Reader) -> Iterator[str]:
    for one, other in ((a, b), (b, a)):
        ids = set(one.catalog["image_id"])
        other_ids = set(other.catalog["image_id"])
        missing = sorted(ids - other_ids)
        if missing:
            yield f"images: {len(missing)} only in {one.path}:{list_some(missing, MOST)}"
        sealed = _sealed_places(one).keys()
        other_sealed = _sealed_places(other).keys()
        unsealed = sorted((sealed & other_ids) - other_sealed)
        if unsealed:
            yield f"images: {len(unsealed)} sealed only in {one.path}:{list_some(unsealed, MOST)}"


def _sealed_places(store: Reader) -> dict[str, int]:
    """Position of each sealed image, by id."""
    sealed = store.sealed
    image_ids = store.catalog["image_id"].iloc[sealed]
    return dict(zip(image_ids, sealed.tolist(), strict=True))


def _cell_lines(a: Reader, b: Reader) -> Iterator[str]:
    one, other = (store.catalog.set_index("image_id") for store in (a, b))
    for name in [*one.columns, *other.columns.difference(one.columns)]:
        if name in one and name in other:
            continue
        yield f"catalog: column {name!r} only in {a.path if name in one else b.path}"
    both = one.index.intersection(other.index, sort=False)
    for name in one.columns.intersection(other.columns, sort=False):
        x = one.loc[both, name]
        y = other.loc[both, name]
        # an empty cell is NaN, which does not equal itself
        both_empty = x.isna() & y.isna()
        differs = ((x != y) & ~both_empty).to_numpy()
        if differs.any():
            ours = x[differs].tolist()
            theirs = y[differs].tolist()
            pairs = zip(both[differs], ours, theirs, strict=True)
            cells = [f"{image_id}: {one!r} | {other!r}" for image_id, one, other in pairs]
            where = count_of(len(cells), "image")
            yield f"catalog: {name!r} differs in {where}:{list_some(cells, MOST)}"


def _row_lines(a: Reader, b: Reader, tokens: bool) -> Iterator[str]:
    """Rows of images sealed in both, under views of the same name."""
    places_a = _sealed_places(a)
    places_b = _sealed_places(b)
    pairs = [(places_a[name], j) for name, j in places_b.items() if name in places_a]
    views = []
    for v, name in enumerate(a.view_names):
        if name in b.view_names:
            views.append((v, b.view_names.index(name)))
    # rows of other shapes are other bytes in any case
    if not pairs or not views or _row_shape(a) != _row_shape(b):
        return
    i_M, j_M = np.array(pairs).T
    v_W, w_W = np.array(views).T
    # rows of a million images are compared without reading one: by their checksums
    crc_a_MW = a.array("crc32c")[i_M][:, v_W]
    crc_b_MW = b.array("crc32c")[j_M][:, w_W]
    differs_MW = crc_a_MW != crc_b_MW
    rows = []
    for m, k in np.argwhere(differs_MW):
        row = f"{a.catalog['image_id'][i_M[m]]}, {a.view_names[v_W[k]]}"
        if tokens:
            name = "patches" if a.spec.has_patches else "cls"
            array_a = a.patches if a.spec.has_patches else a.array("cls")
            array_b = b.patches if b.spec.has_patches else b.array("cls")
            row_a = array_a[int(i_M[m]), int(v_W[k])]
            row_b = array_b[int(j_M[m]), int(w_W[k])]
            # float16 would overflow in squares
            x = np.asarray(row_a, np.float32)
            y = np.asarray(row_b, np.float32)
            apart = np.abs(x - y)
            row += (
                f": {name} at most {apart.max():.3g} apart, root mean square "
                f"{np.sqrt(np.mean(apart**2)):.3g} of {np.sqrt(np.mean(x**2)):.3g}"
            )
        rows.append(row)
    if rows:
        yield f"rows: {len(rows)} of {differs_MW.size} have other bytes:{list_some(rows, MOST)}"


def _thumb_lines(a: Reader, b: Reader) -> Iterator[str]:
    """Thumbnails of images sealed in both; their size is the spec's business."""
    if not a.spec.thumb or a.spec.thumb != b.spec.thumb:
        return
    places = _sealed_places(b)
    thumbs_a = a.array("thumbs")
    thumbs_b = b.array("thumbs")
    ids = []
    for image_id, i in _sealed_places(a).items():
        if image_id in places and not np.array_equal(thumbs_a[i], thumbs_b[places[image_id]]):
            ids.append(image_id)
    if ids:
        yield f"thumbs: {len(ids)} differ:{list_some(ids, MOST)}"


def _row_shape(store: Reader) -> list[tuple]:
    return [
        (array.name, array.shape[2:], array.dtype)
        for array in store.spec.arrays(1)
        if "view" in array.dims[1:2]
    ]
