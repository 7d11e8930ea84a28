"""One pass over the photographs by the backbones of a stage, on one device or several."""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.disk.threads import starting
from featurestore.errors import InputError
from featurestore.format.spec import ViewSpec
from featurestore.photos.crop import Crop
from featurestore.photos.decode import Decoded, decode_ahead
from predictor.extras.explain import Explainer
from predictor.members.deadline import Clock
from predictor.members.journal import Journal
from predictor.members.member import Raw, Stage


@dataclass(frozen=True)
class Found:
    """What members say of one photograph, and what that took."""

    image_id: str
    raws: list[Raw]
    read: str
    """SHA-256 of what they depend on: the photograph, and what is read beside it."""
    n_views: int
    """Views that were computed now; 0 where the journal had it all."""
    seconds: float


@dataclass(frozen=True)
class Pass:
    """What a stage's pass does besides tokens and heads; None is without."""

    group: int
    """Of members that read these backbones' tokens, see `by_spec`."""
    views: Sequence[ViewSpec]
    clock: Clock
    journal: Journal | None
    explainer: Explainer | None
    damaged: Callable[[str, InputError], None] | None
    """Told of a photograph that is damaged, which is left out; None raises."""
    sealed: bool
    """A store holds tokens of these photographs: damage in them is a warning."""
    rows: Mapping[str, Sequence[np.ndarray]]
    """What each member reads beside a photograph (`Member.columns`), by image."""

    def run(self, stages: Sequence[Stage], paths: dict[str, Path]) -> Iterator[Found]:
        """Every photograph, as it is finished; several devices share them."""
        shares = [dict(list(paths.items())[k :: len(stages)]) for k in range(len(stages))]
        work = [self._on(stage, share) for stage, share in zip(stages, shares, strict=True)]
        return work[0] if len(work) == 1 else _together(work)

    def _on(self, stage: Stage, paths: dict[str, Path]) -> Iterator[Found]:
        """Photographs of one device, in their order."""
        sealed = paths if self.sealed else ()
        with ExitStack() as stack:
            decodings = []
            for crop in stage.crops:
                decoding = decode_ahead(paths, crop, None, self.damaged, sealed)
                # closed here: an error's traceback would keep the iterator, and its decoding
                # threads
                decodings.append(stack.enter_context(closing(decoding)))
            for image_id, photographs in side_by_side(decodings, list(paths)):
                photograph = dict(zip(stage.crops, photographs, strict=True))
                yield self._predict(stage, image_id, photograph)

    def _predict(self, stage: Stage, image_id: str, photograph: Mapping[Crop, Decoded]) -> Found:
        """One photograph: what the journal has, else as many views as the clock allows."""
        start = time.monotonic()
        sha256 = photograph[stage.crops[0]].facts["sha256"]
        rows = self.rows[image_id]
        read = _with_rows(sha256, rows)

        raws = self.journal.get(self.group, image_id, read) if self.journal else None
        n_known = raws[0].values_HVK.shape[1] if raws else 0
        views = [] if n_known == len(self.views) else self.clock.views(self.views)

        # a deadline may have left fewer views to it; if there is time now, that is made up for
        if len(views) > n_known:
            tokens = stage.tokens(photograph, image_id, views)
            raws = stage.told(tokens, rows)
            if self.explainer:
                self.explainer.keep(self.group, image_id, sha256, stage, tokens, views)
            return Found(image_id, raws, read, len(views), time.monotonic() - start)

        # predicted before without a map: one view will do
        if self.explainer and not self.explainer.has(self.group, image_id, sha256):
            plain = self.views[:1]
            tokens = stage.tokens(photograph, image_id, plain)
            self.explainer.keep(self.group, image_id, sha256, stage, tokens, plain)
        return Found(image_id, raws, read, 0, time.monotonic() - start)


def _with_rows(sha256: str, rows: Sequence[np.ndarray]) -> str:
    """SHA-256 of a photograph and its rows; of one without rows its own."""
    beside = b"".join(row_C.tobytes() for row_C in rows)
    return hashlib.sha256(sha256.encode() + beside).hexdigest() if beside else sha256


def side_by_side(
    decodings: Sequence[Iterator[tuple[str, Decoded]]], image_ids: Sequence[str]
) -> Iterator[tuple[str, list[Decoded]]]:
    """Photographs that every decoding gives, in the order of their ids, which all keep; what is
    damaged for one of them is left out."""
    place = {image_id: position for position, image_id in enumerate(image_ids)}
    latest = [next(decoding, None) for decoding in decodings]
    while None not in latest:
        places = [place[image_id] for image_id, _ in latest]
        if len(set(places)) == 1:
            yield latest[0][0], [decoded for _, decoded in latest]
        last = max(places)
        for d, decoding in enumerate(decodings):
            # of those that are level each goes on; else those that are behind
            if places[d] < last or len(set(places)) == 1:
                latest[d] = next(decoding, None)


def _together(work: Sequence[Iterator[Found]]) -> Iterator[Found]:
    """What several iterators give, each run by a thread of its own; the first error of any, or a
    signal, ends them all.

    They are waited for, each until its photograph is done: torch aborts a process that ends while a
    thread computes.
    """
    found: queue.SimpleQueue = queue.SimpleQueue()
    stop = threading.Event()

    def run(items: Iterator[Found]) -> None:
        try:
            with closing(items):
                for item in items:
                    found.put(item)
                    if stop.is_set():
                        return
            found.put(None)
        except BaseException as err:  # noqa: BLE001  raised again where the results are read
            found.put(err)

    threads: list[threading.Thread] = []
    try:
        for items in work:
            thread = threading.Thread(target=run, args=(items,))
            with starting():
                thread.start()
            threads.append(thread)
        n_running = len(threads)
        while n_running:
            item = found.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                n_running -= 1
            else:
                yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join()
