"""Other stores that `bench_random_read.py --peers` reads rows from, each as its own documentation
keeps large binary samples.

Uncompressed, one row one (image, view), written once before anything is timed. What is not
installed is left out, with a line that says why. A peer is called mapped where it hands out the
bytes of its file without copying them.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

INSTALL = "pip install '.[peers]'"
INSTALL_MDS = (
    "pip install --no-deps mosaicml-streaming; pip install transformers catalogue Brotli "
    "python-snappy xxhash zstd"
)
ReadRow = Callable[[int], np.ndarray]


class Peer(NamedTuple):
    """How a peer keeps rows, and hands out one by its number. Peers that share `write` share its
    files."""

    package: str
    module: str
    write: Callable[[Path, np.memmap], None] | None
    open: Callable[[Path], ReadRow]
    install: str = INSTALL


def installed() -> dict[str, Peer]:
    """The peers that can be imported, by name; a line for each of the others."""
    found = {}
    for name, peer in PEERS.items():
        try:
            import_module(peer.module)
            found[name] = peer
        except (ImportError, AttributeError) as err:
            # AttributeError: written for another version of what it imports
            print(f"{name} is left out: {err} ({peer.install})")
    return found


def write_peers(folder: Path, peers: dict[str, Peer], rows_NPD: np.memmap) -> None:
    """Every peer's own files in folder, of the same rows: (N, P, D) float16, a whole flat file
    mapped."""
    for write in dict.fromkeys(peer.write for peer in peers.values() if peer.write):
        write(folder, rows_NPD)
    os.sync()  # writing dirty pages back would disturb the first rounds


# -- LitData: tensors, in the larger chunks that its FAQ advises for samples of a few MB; numpy
# arrays it would copy twice


def _write_litdata(folder: Path, rows_NPD: np.memmap) -> None:
    import litdata

    # else in the system's temporary folder, for good
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder / "litdata_chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder / "litdata_data")
    # goes to a new process, which must not be sent the rows
    tensor_of = partial(_tensor_of, rows_NPD.filename, rows_NPD.shape)
    litdata.optimize(
        tensor_of,
        list(range(len(rows_NPD))),
        str(folder / "litdata"),
        chunk_bytes="256MB",
        num_workers=1,
        start_method="spawn",
        verbose=False,
    )


def _tensor_of(flat_file: Path, shape: tuple[int, ...], row: int) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.array(np.memmap(flat_file, np.float16, "r", shape=shape)[row]))


def _open_litdata(folder: Path) -> ReadRow:
    import litdata

    dataset = litdata.StreamingDataset(str(folder / "litdata"))
    return lambda row: dataset[row].numpy()


# -- MosaicML streaming: MDS with an array of fixed type and shape. 0.13 asks for numpy < 2.2 and
# transformers < 5, and so is installed beside the others with --no-deps alone; it runs with numpy
# 2.4 and transformers 5.24 all the same


def _write_mds(folder: Path, rows_NPD: np.memmap) -> None:
    from streaming import MDSWriter

    _, n_patches, width = rows_NPD.shape
    with MDSWriter(
        out=str(folder / "mds"), columns={"patches": f"ndarray:float16:{n_patches},{width}"}
    ) as writer:
        for row in rows_NPD:
            writer.write({"patches": np.asarray(row)})


def _open_mds(folder: Path) -> ReadRow:
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=1)
    return lambda row: dataset[row]["patches"]


# -- Hugging Face datasets: Arrow, mapped; its numpy format stacks the rows it is asked for, its
# arrow format hands out the map


def _write_datasets(folder: Path, rows_NPD: np.memmap) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"patches": datasets.Array2D(rows_NPD.shape[1:], "float16")})
    made = datasets.Dataset.from_generator(
        lambda: ({"patches": np.asarray(row)} for row in rows_NPD),
        features,
        str(folder / "datasets_cache"),
        fingerprint="rows",
    )  # or else it pickles the rows to make one
    made.save_to_disk(str(folder / "datasets"))
    shutil.rmtree(folder / "datasets_cache")


def _open_datasets_numpy(folder: Path) -> ReadRow:
    import datasets

    # else as float32
    rows = datasets.load_from_disk(str(folder / "datasets")).with_format("numpy", dtype=np.float16)
    return lambda row: rows[row]["patches"]


def _open_datasets_arrow(folder: Path) -> ReadRow:
    import datasets

    rows = datasets.load_from_disk(str(folder / "datasets")).with_format("arrow")
    return lambda row: rows[row]["patches"].chunk(0).to_numpy()


# -- Lance: a list of fixed size as for vectors, plain binary, and the blob column it advises for
# values of more than 4 MB.
# Fixed-size binary is not here: one row took 1.4 s (pylance 14.0.2, 16 rows)


def _write_lance(column: str, folder: Path, rows_NPD: np.memmap) -> None:
    import lance
    import pyarrow

    n_values = rows_NPD[0].size
    field, encode = {
        "list": (
            pyarrow.field("patches", pyarrow.list_(pyarrow.float16(), n_values)),
            lambda row: pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(row.reshape(-1)), n_values
            ),
        ),
        "binary": (
            pyarrow.field("patches", pyarrow.large_binary()),
            lambda row: pyarrow.array([row.tobytes()], pyarrow.large_binary()),
        ),
        "blob": (lance.blob_field("patches"), lambda row: lance.blob_array([row.tobytes()])),
    }[column]
    schema = pyarrow.schema([field])
    batches = (pyarrow.record_batch([encode(np.asarray(row))], schema) for row in rows_NPD)
    lance.write_dataset(
        pyarrow.RecordBatchReader.from_batches(schema, batches),
        folder / f"{column}.lance",
        # 2.2 brought blob columns in
        data_storage_version="2.2" if column == "blob" else "stable",
    )


def _open_lance_list(folder: Path) -> ReadRow:
    import lance

    dataset = lance.dataset(folder / "list.lance")
    return lambda row: dataset.take([row], ["patches"])["patches"].chunk(0).flatten().to_numpy()


def _open_lance_binary(folder: Path) -> ReadRow:
    import lance

    dataset = lance.dataset(folder / "binary.lance")
    return lambda row: np.frombuffer(
        dataset.take([row], ["patches"])["patches"][0].as_buffer(), np.float16
    )


def _open_lance_blob(folder: Path) -> ReadRow:
    import lance

    dataset = lance.dataset(folder / "blob.lance")
    return lambda row: np.frombuffer(dataset.read_blobs("patches", indices=[row])[0][1], np.float16)


# -- zarrs: zarr-python with the codecs in Rust, on the store's own Zarr; like zarr-python it checks
# the chunk's CRC-32C


def _open_zarrs(folder: Path) -> ReadRow:
    import zarr

    with zarr.config.set(
        {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    ):
        # keeps the codecs it was opened with
        array = zarr.open_group(folder / "features.zarr", mode="r")["patches"]
    return lambda row: array[divmod(row, array.shape[1])]


PEERS = {
    "LitData, tensors, mapped": Peer("litdata", "litdata", _write_litdata, _open_litdata),
    "MosaicML streaming, MDS": Peer(
        "mosaicml-streaming", "streaming", _write_mds, _open_mds, INSTALL_MDS
    ),
    "HF datasets, numpy format": Peer(
        "datasets", "datasets", _write_datasets, _open_datasets_numpy
    ),
    "HF datasets, arrow format, mapped": Peer(
        "datasets", "datasets", _write_datasets, _open_datasets_arrow
    ),
    "Lance, fixed-size list": Peer(
        "pylance", "lance", partial(_write_lance, "list"), _open_lance_list
    ),
    "Lance, large binary": Peer(
        "pylance", "lance", partial(_write_lance, "binary"), _open_lance_binary
    ),
    "Lance, blob column": Peer("pylance", "lance", partial(_write_lance, "blob"), _open_lance_blob),
    "zarr-python with zarrs on the .zarr": Peer("zarrs", "zarrs", None, _open_zarrs),
}
