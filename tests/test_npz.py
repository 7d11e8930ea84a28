"""An earlier experiment's npz files become a store; what is wrong with them is said before anything
is written."""

import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from commands import biomass
from imported import MODEL, demo_backbone, write_tokens

from featurestore import FeatureStore
from featurestore.backbone.moments import pool
from featurestore.errors import InputError
from featurestore.manage.npz import import_npz

WIDTH, PATCHES, VIEWS = 96, 9, 6
unknown = pytest.mark.filterwarnings("ignore:the weights:UserWarning", "ignore:views:UserWarning")


def tokens(image: int, view: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([image, view])
    return rng.normal(size=WIDTH).astype(np.float32), rng.normal(size=(PATCHES, WIDTH)).astype(
        np.float32
    )


def write_npz(path, image: int, **changes) -> None:
    arrays = {}
    for view in range(VIEWS):
        arrays[f"cls_{view}"], arrays[f"patches_{view}"] = tokens(image, view)
    np.savez_compressed(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "npz").mkdir()
    for image in range(3):
        write_npz(tmp_path / f"npz/ID{image}.npz", image)
    return tmp_path / "npz"


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "labels.csv"
    pd.DataFrame(
        {
            "image_id": ["ID2", "ID0", "ID1"],
            "path": ["train/c.jpg", "train/a.jpg", "train/b.jpg"],
            "Dry_Total_g": [3.0, 1.0, 2.0],
        }
    ).to_csv(path, index=False)
    return path


@unknown
def test_tokens_come_over_rounded_once_with_labels_by_id(folder, csv, tmp_path):
    report = import_npz(folder, tmp_path / "f.h5", csv, MODEL, progress=False)
    store = FeatureStore.open(tmp_path / "f.h5")
    assert (
        store.catalog["image_id"].tolist() == ["ID2", "ID0", "ID1"]
        and store.n_sealed == report.n_imported == 3
    )
    assert (
        store.catalog["Dry_Total_g"].tolist() == [3, 1, 2]
        and store.catalog["path"][0] == "train/c.jpg"
    )
    assert store.view_names == ("plain", "hflip", "vflip", "hvflip", "imported_04", "imported_05")
    for row, image in enumerate([2, 0, 1]):
        for view in range(VIEWS):
            cls_D, patches_PD = tokens(image, view)
            assert np.array_equal(store.cls[row, view, 0], cls_D.astype(np.float16))
            assert np.array_equal(store.patches[row, view, 0], patches_PD.astype(np.float16))
            expected = pool(torch.from_numpy(patches_PD.astype(np.float16))[None])
            assert np.array_equal(store.pooled[row, view], expected.numpy())
    every = np.concatenate(
        [np.vstack(tokens(image, view)) for image in range(3) for view in range(VIEWS)]
    )
    off = np.abs(every.astype(np.float16) - every)
    assert report.error["max"] == off.max() and report.error["rms"] == pytest.approx(
        (off**2).mean() ** 0.5
    )
    assert (
        store.spec.tokens.weights_sha256 == "0" * 64 and store.spec.made_by["weights"] == "unknown"
    )
    assert store.spec.tokens.grid == (3, 3) and store.spec.tokens.tile_height == 48
    assert store.verify() and np.isnan(store.catalog["width"]).all()


@pytest.mark.filterwarnings("default:the weights:UserWarning", "default:views:UserWarning")
def test_the_command_warns_of_what_cannot_be_known_and_goes_on(folder, csv, tmp_path):
    out = tmp_path / "f.zarr"
    options = ["store", "import", folder, "--out", out, "--csv", csv, "--backbone", MODEL]
    arrays = dict(np.load(folder / "ID1.npz"))
    write_npz(folder / "ID1.npz", 1, patches_2=arrays["patches_2"] * 1e5)  # the last one in the CSV
    stopped = biomass(*options, code=3)
    assert (
        "ID1.npz: patches_2: its values are not finite or beyond float16's 65504" in stopped.stderr
    )
    assert FeatureStore.open(out).n_sealed == 2
    write_npz(folder / "ID1.npz", 1)
    done = biomass(*options)
    assert (
        "3 images sealed, 1 of them now" in done.stdout and "rounded to float16 by" in done.stdout
    )
    assert (
        "predict will accept no backbone" in done.stderr
        and "imported_04 to imported_05 cannot be made again" in done.stderr
    )


def test_photographs_and_weights_make_it_a_store_predict_accepts(built, pasture, tmp_path):
    """Tokens of the pasture written as npz and imported: the same backbone is found, the same facts
    are read."""
    backbone, weights = demo_backbone(64, tmp_path)
    write_tokens(tmp_path / "npz", sorted((pasture / "train").glob("*.jpg")), backbone)
    biomass(
        "store",
        "import",
        tmp_path / "npz",
        "--out",
        tmp_path / "f.h5",
        "--data",
        pasture,
        "--backbone",
        MODEL,
        "--weights",
        weights,
        "--image-size",
        64,
    )
    store, original = FeatureStore.open(tmp_path / "f.h5"), FeatureStore.open(built)
    assert store.spec.tokens == backbone.spec
    assert store.catalog["sha256"].tolist() == original.catalog["sha256"].tolist()
    assert (
        np.array_equal(store.thumbs, original.thumbs)
        and store.catalog["width"].tolist() == [768.0] * 6
    )
    assert store.verify()


@unknown
def test_L11_import_takes_linked_photographs_when_told(folder, csv, pasture, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    names = pd.read_csv(csv)["path"]
    for name, photograph in zip(names, sorted((pasture / "train").glob("*.jpg")), strict=False):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).symlink_to(photograph)
    command = [
        "store",
        "import",
        folder,
        "--out",
        tmp_path / "f.h5",
        "--csv",
        csv,
        "--backbone",
        MODEL,
        "--data",
        data,
    ]
    assert "allow it with --allow-outside" in biomass(*command, code=3).stderr
    biomass(*command, "--allow-outside")
    assert FeatureStore.open(tmp_path / "f.h5").catalog["width"].tolist() == [768.0] * 3


def rewrite(path, key: str, data: bytes) -> None:
    """Put other bytes in place of a member."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in (members | {f"{key}.npy": data}).items():
            new.writestr(name, content)


def bomb(path) -> None:
    """A member whose header is as it should be and which unpacks to 100 MB."""
    with zipfile.ZipFile(path) as old:
        data = old.read("patches_3.npy")
    rewrite(path, "patches_3", data + bytes(100_000_000))


def huge_header(path) -> None:
    with zipfile.ZipFile(path) as old:
        data = old.read("patches_3.npy")
    rewrite(path, "patches_3", data.replace(b"(9, 96)", b"(9999999999, 96)")[:128])


BAD = {
    "no zip": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "missing key": lambda path: write_npz(path, 1, cls_2=None),
    "other number of views": lambda path: write_npz(path, 1, cls_5=None, patches_5=None),
    "other shape": lambda path: write_npz(path, 1, patches_1=np.zeros((8, WIDTH), np.float32)),
    "integers": lambda path: write_npz(path, 1, cls_0=np.zeros(WIDTH, np.int64)),
    "pickled": lambda path: write_npz(path, 1, cls_0=np.array([print] * WIDTH, object)),
    "bomb": bomb,
    "huge header": huge_header,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
}


@pytest.mark.parametrize("what", BAD, ids=lambda x: x)
def test_bad_files_are_all_listed_before_anything_is_written(folder, tmp_path, what):
    BAD[what](folder / "ID1.npz")
    shutil.copy(folder / "ID1.npz", folder / "ID7.npz")
    with pytest.raises(
        InputError, match=r"2 of 4 files cannot be imported(.|\n)*ID1.npz: (.|\n)*ID7.npz: "
    ):
        import_npz(folder, tmp_path / "f.h5", model=MODEL, progress=False)
    assert not (tmp_path / "f.h5").exists()


def test_a_bomb_allocates_nothing(folder, tmp_path):
    import tracemalloc

    bomb(folder / "ID1.npz")
    tracemalloc.start()
    with pytest.raises(InputError, match="unpacks to 100003584 bytes, its header says 3584"):
        import_npz(folder, tmp_path / "f.h5", model=MODEL, progress=False)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@unknown
def test_damage_inside_is_named_by_file_and_key(folder, tmp_path):
    rng = np.random.default_rng(0)  # more than a header's read brings along
    arrays = {
        f"{kind}_0": rng.normal(size=(*shape, WIDTH)).astype("f4")
        for kind, shape in (("cls", ()), ("patches", (36,)))
    }
    for image in range(3):
        np.savez_compressed(folder / f"ID{image}.npz", **arrays)
    data = bytearray((folder / "ID1.npz").read_bytes())
    with zipfile.ZipFile(folder / "ID1.npz") as archive:
        data[archive.getinfo("patches_0.npy").header_offset + 10_000] ^= 255
    (folder / "ID1.npz").write_bytes(data)
    with pytest.raises(InputError, match="ID1.npz: patches_0: cannot be read"):
        import_npz(folder, tmp_path / "f.h5", model=MODEL, progress=False)
    assert FeatureStore.open(tmp_path / "f.h5").n_sealed == 1


@pytest.mark.parametrize(
    "options, why",
    [
        (
            {"model": "vit_tiny_patch16_dinov3_qkvb"},
            "gives 9 patches of width 192, the files hold 9 of width 96",
        ),
        ({"image_size": 64}, "gives 16 patches"),
        ({"views": "plain,hflip"}, "2 names, 2 different ones, the files have 6"),
        ({"views": "plain,hflip,vflip,hvflip,sideways,gamma"}, "sideways' unknown"),
        ({"crop": "halves"}, "one tile a view"),
    ],
    ids=["model", "image size", "too few views", "unknown view", "crop"],
)
def test_what_cannot_be_is_refused(folder, tmp_path, options, why):
    with pytest.raises(InputError, match=why):
        import_npz(folder, tmp_path / "f.h5", progress=False, **{"model": MODEL} | options)
    assert not (tmp_path / "f.h5").exists()


def test_ids_without_file_and_files_without_row_are_listed(folder, csv, tmp_path):
    (folder / "ID1.npz").rename(folder / "ID9.npz")
    with pytest.raises(InputError, match=r"in the one alone:\n  ID1\nin the other alone:\n  ID9"):
        import_npz(folder, tmp_path / "f.h5", csv, MODEL, progress=False)
