"""What differs is said, and nothing else."""

from commands import biomass
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny

from featurestore import open_writer
from featurestore.manage.diff import diff_stores


def write(path, images, frame, tokens_of=None, **changes):
    spec = tiny_spec(frame, **changes)
    with open_writer(path, spec, frame) as writer:
        for place, image in enumerate(images):
            writer.put(place, tiny_rows(spec, (tokens_of or {}).get(image, image)))


def test_equal_stores_of_two_formats_do_not_differ(tmp_path):
    write_tiny(tmp_path / "a.h5")
    write_tiny(tmp_path / "b.zarr")
    assert not diff_stores(tmp_path / "a.h5", tmp_path / "b.zarr", tokens=True)
    assert (
        biomass("store", "diff", tmp_path / "a.h5", tmp_path / "b.zarr").stdout == "no difference\n"
    )


def test_each_difference_is_a_line(tmp_path):
    write(tmp_path / "a.h5", range(4), tiny_frame(5))
    frame = (
        tiny_frame(5)
        .assign(Dry_Total_g=[1.0, 99.0, 4.0, 5.5, 7.0])
        .drop(index=0)
        .reset_index(drop=True)
    )
    write(tmp_path / "b.h5", [1, 2, 3, 4], frame, tokens_of={3: 9})
    lines = biomass(
        "store", "diff", tmp_path / "a.h5", tmp_path / "b.h5", "--compare-tokens", code=5
    ).stdout.splitlines()
    assert lines == [
        f"images: 1 only in {tmp_path / 'a.h5'}:",
        "  ID000",
        f"images: 1 sealed only in {tmp_path / 'b.h5'}:",
        "  ID004",
        "catalog: 'sha256' differs in 2 images:",
        *lines[5:7],
        "catalog: 'width' differs in 1 image:",
        lines[8],
        "catalog: 'height' differs in 1 image:",
        lines[10],
        "catalog: 'status' differs in 1 image:",
        "  ID004: '' | 'ok'",
        "catalog: 'Dry_Total_g' differs in 1 image:",
        "  ID001: 2.5 | 99.0",
        "rows: 3 of 9 have other bytes:",
        *lines[16:19],
        "thumbs: 1 differ:",
        "  ID003",
    ]
    assert lines[16].startswith("  ID003, plain: patches at most ")


def test_other_tokens_are_told_by_their_specs(tmp_path):
    write(tmp_path / "a.h5", range(3), tiny_frame(3))
    write(tmp_path / "b.h5", range(3), tiny_frame(3), width=8, weights_sha256="1" * 64)
    lines = biomass(
        "store", "diff", tmp_path / "a.h5", tmp_path / "b.h5", code=5
    ).stdout.splitlines()
    assert lines == [
        f"spec: weights_sha256 {'0' * 64!r} | {'1' * 64!r}",
        "spec: width 7 | 8",
        *lines[2:],
    ]
    assert lines[2] == "thumbs: 3 differ:"  # drawn after the tokens, from the same dice
