"""Rows dealt into parts of about one size, groups kept together: scikit-learn's GroupKFold.

Written out here because `sklearn.model_selection` takes half as long to import as torch does.
"""

import numpy as np


def group_parts(group_N: np.ndarray, n_parts: int) -> np.ndarray:
    """(N,) the part of each row, 0 to n_parts - 1.

    The largest group first, each goes to the part that is smallest so far; of groups of one size
    the last in the order of their names, of parts of one size the first.

    group_N : (N,) any labels, of at least n_parts groups.

    Source: scikit-learn's GroupKFold without shuffling, whose parts these are.
    """
    _, number_N, size_M = np.unique(group_N, return_inverse=True, return_counts=True)
    part_M = np.empty(len(size_M), int)
    part_sizes = np.zeros(n_parts, int)
    for group in np.argsort(size_M, kind="stable")[::-1]:
        smallest = part_sizes.argmin()
        part_M[group] = smallest
        part_sizes[smallest] += size_M[group]
    return part_M[number_N]
