"""`store serve --token-file`: one token over restarts, for its owner alone."""

import os
import urllib.request

import pytest
from commands import biomass
from served import TOKEN, started, write_served

from featurestore.errors import InputError, UsageError
from service.server import serve
from service.token_file import is_private, kept_token


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("served"), "h5")


def test_two_starts_have_the_same_token(path, tmp_path):
    kept = tmp_path / "token"
    tokens = []
    for _ in range(2):
        with started(path, "--token-file", kept) as (_, said):
            bearer = {"Authorization": f"Bearer {kept.read_text().strip()}"}
            request = urllib.request.Request(f"{said['url']}v1/stores", headers=bearer)
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
            tokens.append(said["token"])
    assert tokens[0] == tokens[1] and len(tokens[0]) == 32


def test_a_new_file_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        token = kept_token(tmp_path / "token")
    finally:
        os.umask(before)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "token").read_text() == f"{token}\n"
    assert is_private(tmp_path / "token") and kept_token(tmp_path / "token") == token


def test_a_file_of_ones_own_is_kept_as_it_is(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text(f"  {TOKEN}\n\n")
    mine.chmod(0o644)
    assert kept_token(mine) == TOKEN and not is_private(mine)
    assert mine.read_text() == f"  {TOKEN}\n\n"


@pytest.mark.parametrize("text", ["", "short", f"{TOKEN} {TOKEN}", "a-token-with-ü-in-it"])
def test_a_file_without_a_token_is_refused_and_kept(tmp_path, text):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InputError, match="bad: 16 or more letters.*remove the file"):
        kept_token(tmp_path / "bad")
    assert (tmp_path / "bad").read_text() == text


def test_a_file_that_cannot_be_made_is_named(tmp_path, path):
    with pytest.raises(InputError, match="nowhere/token: No such file.*a new one"):
        kept_token(tmp_path / "nowhere/token")
    said = biomass("store", "serve", path, "--port", 0, "--token-file", tmp_path, code=3).stderr
    assert f"--token-file {tmp_path}: Is a directory" in said


def test_a_token_beside_the_file_is_refused_first(path, tmp_path):
    file = tmp_path / "token"
    with pytest.raises(UsageError, match="BIOMASS_TOKEN: choose one"):
        serve([path], port=0, token=TOKEN, token_file=file)
    with pytest.raises(UsageError, match="--no-token: choose one"):
        serve([path], port=0, no_token=True, token_file=file)
    assert not file.exists()
