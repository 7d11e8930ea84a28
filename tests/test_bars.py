"""Progress: a bar at a terminal, a line a minute in files and pipes, nothing where TQDM_DISABLE
is set."""

import io
import os
import pty
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

import pytest
from commands import biomass
from sweeps import config

from featurestore.disk import progress_lines
from featurestore.disk.messages import new_bar


class Clock:
    """One that moves when it is told to, and by `step` whenever it is read."""

    def __init__(self, step: float = 0) -> None:
        self.now = 0.0
        self.step = step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_lines, "time", clock)
    return clock


@contextmanager
def pipe() -> Iterator[Callable[[], str]]:
    """A stderr that is no terminal, and a function that says what was written there."""
    # not a fixture: pytest puts its own stderr in place before the test begins
    said = io.BytesIO()
    with redirect_stderr(io.TextIOWrapper(said, "utf-8", write_through=True)) as stderr:
        yield lambda: said.getvalue().decode()
        stderr.detach()


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """As `pipe`, of a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    with open(theirs, "w") as stderr, redirect_stderr(stderr):

        def said() -> str:
            # the kernel hands on what was written later, and in pieces: read up to a mark of ours
            stderr.write("\0")
            stderr.flush()
            text = b""
            while not text.endswith(b"\0"):
                text += os.read(ours, 100_000)
            return text[:-1].decode()

        yield said
    os.close(ours)


def test_a_pipe_gets_a_line_a_minute(clock):
    with pipe() as said, new_bar("train", 60, "epoch", initial=10) as bar:
        for _ in range(50):
            clock.now += 15
            bar.set_postfix({"score": "0.6123"}, refresh=False)
            bar.update()
        lines = said().splitlines()
    assert len(lines) == 12
    # 46 more at 15 s each
    assert lines[0] == "train: 14 of 60 epochs, 60 s so far, about 12 min to go, score 0.6123"


def test_passes_are_told_by_their_plural(clock):
    with pipe() as said, new_bar("train", 4, "pass") as bar:
        clock.now = 90
        bar.update(3)
        assert said() == "train: 3 of 4 passes, 90 s so far, about 30 s to go\n"


def test_a_short_work_says_nothing_in_a_pipe():
    with pipe() as said:
        assert list(new_bar("look", 3, "image", iterable=iter("abc"))) == ["a", "b", "c"]
        with new_bar("copy", 10**9, "B", unit_scale=True) as bar:
            bar.update(10**9)
        assert not said()


def test_bytes_are_told_in_gigabytes(clock):
    with pipe() as said, new_bar("copy", 4 * 10**9, "B", unit_scale=True) as bar:
        clock.now = 120
        bar.update(10**9)
        assert said() == "copy: 1 of 4 GB, 2 min so far, about 6 min to go\n"


def test_a_terminal_gets_a_bar_that_ends_at_100_percent():
    with terminal() as said:
        with new_bar("verify", 7, "B") as bar:
            bar.update(4)  # what is not sealed is not read
        last = said().rstrip().rpartition("\r")[2]
    assert last.startswith("verify: 100%") and " 7/7 " in last


def test_a_bar_whose_work_failed_stays_where_it_was():
    with terminal() as said:
        with pytest.raises(ValueError), new_bar("verify", 8, "B") as bar:
            bar.update(4)
            raise ValueError
        assert "verify:  50%" in said()


@pytest.mark.parametrize(("value", "is_shown"), [("1", False), ("0", True), ("", True)])
def test_TQDM_DISABLE_is_heeded(monkeypatch, value, is_shown):
    monkeypatch.setenv("TQDM_DISABLE", value)
    with terminal() as said:
        with new_bar("verify", 8, "B") as bar:
            bar.update(4)
        assert ("verify" in said()) == is_shown


def test_a_command_in_a_pipe_draws_no_bar(tmp_path, store):
    said = biomass("store", "verify", store)
    assert said.stdout.endswith("all as committed\n") and not said.stderr


def test_no_score_is_said_of_a_refit(tmp_path, store, monkeypatch):
    """A refit holds nothing out."""
    config(tmp_path, store, kind="[density]", lr="[1e-2]", epochs=2)
    monkeypatch.setattr(progress_lines, "time", Clock(step=100))
    out = tmp_path / "runs"
    sweep = ["--config", tmp_path / "sweep.yaml", "--out", out, "--device", "cpu"]
    lines = biomass("train", *sweep, "--fold", "all").stderr.splitlines()
    train = [line for line in lines if line.startswith("train: ")]
    of_folds, of_refit = train[:2], train[2:]
    assert [line.split(",")[0] for line in train] == 2 * [
        "train: 1 of 2 epochs",
        "train: 2 of 2 epochs",
    ]
    assert all("score " in line for line in of_folds)
    assert not any("score" in line or "nan" in line for line in of_refit)
