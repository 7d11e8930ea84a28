"""Which files can hold pickles, by name and by first bytes.

Nothing unpickles them but `biomass weights convert`, which reads tensors and plain values alone.
"""

from pathlib import Path

PICKLED = {
    ".pkl",
    ".pickle",
    ".pt",
    ".pth",
    ".ckpt",
    ".bin",
    ".joblib",
    ".dill",
    ".npy",
    ".npz",
    ".h5",
    ".hdf5",
    ".keras",
}
# protocols 0 and 1, of Python 2, begin with no mark of their own: those go by their names
MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip, as torch.save writes",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
}
HEAD_BYTES = 9  # a safetensors file begins with a length of eight bytes and a {


def pickled(path: Path) -> str | None:
    """What a file is by its first bytes, where they are of a kind that can hold pickles."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if path.suffix == ".safetensors" and head[8:9] == b"{":  # its length may begin as a pickle does
        return None
    return next((what for start, what in MAGIC.items() if head.startswith(start)), None)
