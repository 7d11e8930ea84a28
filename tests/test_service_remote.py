"""A RemoteStore and the service it was made for: what one asks, the other answers."""

import numpy as np
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec
from served import TOKEN, serving, write_served

from featurestore import FeatureStore, open_writer
from featurestore.errors import BiomassError

S = "/v1/stores/features"


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_a_served_store_is_the_store(tmp_path, suffix):
    path = write_served(tmp_path, suffix, seal=4)
    here = FeatureStore.open(path)
    with (
        serving(path, token=TOKEN) as url,
        FeatureStore.open(f"{url}{S}?token={TOKEN}", cache=tmp_path / "cache") as there,
    ):
        assert there.sealed.tolist() == here.sealed.tolist() == [0, 1, 2, 3]
        for image in range(4):
            np.testing.assert_array_equal(there.patches[image], here.patches[image])
        assert there.catalog.equals(here.catalog) and there.stats().equals(here.stats())


def test_without_the_token_it_is_not_opened(tmp_path):
    with (
        serving(write_served(tmp_path, "h5"), token=TOKEN) as url,
        pytest.raises(BiomassError, match="token"),
    ):
        FeatureStore.open(f"{url}{S}", cache=tmp_path / "cache")


def test_images_sealed_meanwhile_come_after_refresh(tmp_path):
    frame = tiny_frame(5)
    spec = tiny_spec(frame)
    with open_writer(tmp_path / "features.h5", spec, frame) as writer:
        writer.put(0, tiny_rows(spec, 0))
        writer.commit()
        with (
            serving(tmp_path / "features.h5") as url,
            FeatureStore.open(f"{url}{S}", cache=tmp_path / "cache") as there,
        ):
            assert there.n_sealed == 1
            writer.put(1, tiny_rows(spec, 1))
            writer.commit()
            there.refresh()
            np.testing.assert_array_equal(there.patches[1, 2], tiny_rows(spec, 1).patches_VTPD[2])
