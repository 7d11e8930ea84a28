"""Pooled vectors and moments against their definitions in float64."""

import numpy as np
import torch

from featurestore.backbone.moments import pool, row_stats
from featurestore.format.spec import STATS

RNG = np.random.default_rng(0)
PATCHES = RNG.normal(1, 3, (2, 6, 5)).astype(np.float16)
CLS = RNG.normal(size=(2, 5)).astype(np.float16)


def test_pooled_vectors_are_what_the_format_says():
    x = PATCHES.astype(np.float64)
    expected = np.stack([x.mean(1), x.std(1), x.max(1), x.min(1), np.cbrt((x**3).mean(1))], 1)
    np.testing.assert_allclose(pool(torch.from_numpy(PATCHES)).numpy(), expected, rtol=2e-5)


def test_row_stats_are_those_of_all_values():
    patches = torch.from_numpy(PATCHES)
    got = dict(
        zip(STATS, row_stats(torch.from_numpy(CLS), patches, pool(patches)).tolist(), strict=True)
    )
    expected = {}
    for part, values in (("cls", CLS.astype(np.float64)), ("patch", PATCHES.astype(np.float64))):
        fields = {
            "count": values.size,
            "non_finite": 0,
            "min": values.min(),
            "max": values.max(),
            "mean": values.mean(),
            "m2": values.var() * values.size,
            "norm": np.linalg.norm(values, axis=-1).mean(),
        }
        expected |= {f"{part}_{name}": value for name, value in fields.items()}
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_non_finite_values_are_counted():
    patches = torch.from_numpy(PATCHES).clone()
    patches[1, 2, 3:] = float("nan")
    cls = torch.from_numpy(CLS).clone()
    cls[0, 1] = float("inf")
    found = dict(zip(STATS, row_stats(cls, patches, pool(patches)).tolist(), strict=True))
    assert found["patch_non_finite"] == 2 and found["cls_non_finite"] == 1
