"""What several commands take on their command lines."""

import pytest

from featurestore.commands.options import split_numbers
from featurestore.errors import UsageError


def test_numbers_are_given_with_commas():
    assert split_numbers("--folds", "0, 2", "0,2") == [0, 2]
    assert split_numbers("--layers", "-4,-1", "-4,-1", negative=True) == [-4, -1]
    assert split_numbers("--folds", None, "0,2") is None


@pytest.mark.parametrize("text", ["", "x", "0,,2", "-1", "1.5", "²"])
def test_other_words_are_refused_with_an_example(text):
    with pytest.raises(UsageError, match="--folds .*: give numbers with commas, e.g. 0,2"):
        split_numbers("--folds", text, "0,2")
