"""One pass over the photographs by the backbones of a stage, on one device or several."""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from featurestore.disk.durable import file_sha256
from featurestore.disk.threads import starting
from featurestore.errors import InputError
from featurestore.format.spec import ViewSpec
from featurestore.photos.decode import Decoded, ahead_for, decode_ahead
from predictor.extras.explain import Explainer
from predictor.members.deadline import Clock
from predictor.members.journal import Journal
from predictor.members.member import Photograph, Raw, Stage


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
        """Every photograph, as it is finished: those first that the journal has, then the others,
        which several devices share."""
        todo = {}
        for image_id, path in paths.items():
            if known := self._known(image_id, path):
                yield known
            else:
                todo[image_id] = path

        work = []
        photographs = list(todo.items())
        for k, stage in enumerate(stages):
            share = dict(photographs[k :: len(stages)])
            work.append(self._on(stage, share))
        yield from work[0] if len(work) == 1 else _together(work)

    def _known(self, image_id: str, path: Path) -> Found | None:
        """A photograph of which nothing is left to compute: it need not be decoded."""
        if not (self.journal and self.journal.has(self.group, image_id)):
            return None
        try:
            sha256 = file_sha256(path)
        except OSError:  # whoever decodes it says why
            return None
        if self.explainer and not self.explainer.has(self.group, image_id, sha256):
            return None
        read = _with_rows(sha256, self.rows[image_id])
        raws = self.journal.get(self.group, image_id, read)
        if _n_views(raws) < len(self.views):
            return None
        return Found(image_id, raws, read, 0, 0.0)

    def _on(self, stage: Stage, paths: dict[str, Path]) -> Iterator[Found]:
        """Photographs of one device, in their order."""
        sealed = paths if self.sealed else ()
        with ExitStack() as stack:
            decodings = []
            for crop in stage.crops:
                ahead = ahead_for(stage.backbone.device)
                decoding = decode_ahead(paths, crop, None, self.damaged, sealed, ahead)
                # closed here: an error's traceback would keep the iterator, and its decoding
                # threads
                decodings.append(stack.enter_context(closing(decoding)))
            decoded = in_step(decodings, list(paths))
            # views of several photographs fill one batch of the backbone
            n_together = stage.n_photographs(len(self.views))
            while together := list(islice(decoded, n_together)):
                photographs = []
                for image_id, cut in together:
                    photograph = dict(zip(stage.crops, cut, strict=True))
                    photographs.append((image_id, photograph))
                yield from self._predict(stage, photographs)

    def _predict(
        self,
        stage: Stage,
        photographs: Sequence[tuple[str, Photograph]],
    ) -> Iterator[Found]:
        """Photographs whose views are computed together, in their order: what the journal has, else
        as many views as the clock allows."""
        start = time.monotonic()
        in_hand = [self._in_hand(stage, *each) for each in photographs]
        is_all_known = all(each.n_known == len(self.views) for each in in_hand)
        views = [] if is_all_known else self.clock.views(self.views)

        # a deadline may have left fewer views to some; if there is time now, that is made up for
        todo = [each for each in in_hand if each.n_known < len(views)]
        named = [(each.image_id, each.photograph) for each in todo]
        ids = [image_id for image_id, _ in named]
        tokens_of = dict(zip(ids, stage.tokens(named, views), strict=True))
        seconds = (time.monotonic() - start) / max(1, len(todo))
        for each in in_hand:
            tokens = tokens_of.get(each.image_id)
            if tokens is None:
                self._explain_known(stage, each)
                yield Found(each.image_id, each.known, each.read, 0, 0.0)
                continue
            start = time.monotonic()
            raws = stage.told(tokens, self.rows[each.image_id])
            if self.explainer:
                key = self.group, each.image_id, each.sha256
                self.explainer.keep(*key, stage, tokens, views)
            took = seconds + time.monotonic() - start
            yield Found(each.image_id, raws, each.read, len(views), took)

    def _in_hand(self, stage: Stage, image_id: str, photograph: Photograph) -> "_InHand":
        sha256 = photograph[stage.crops[0]].facts["sha256"]
        read = _with_rows(sha256, self.rows[image_id])
        known = self.journal.get(self.group, image_id, read) if self.journal else None
        return _InHand(image_id, photograph, sha256, read, known)

    def _explain_known(self, stage: Stage, in_hand: "_InHand") -> None:
        """Keep a map of a photograph that was predicted before without one; one view will do."""
        key = self.group, in_hand.image_id, in_hand.sha256
        if self.explainer and not self.explainer.has(*key):
            plain = self.views[:1]
            named = [(in_hand.image_id, in_hand.photograph)]
            (tokens,) = stage.tokens(named, plain)
            self.explainer.keep(*key, stage, tokens, plain)


@dataclass(frozen=True)
class _InHand:
    """A photograph, and what the journal says of it."""

    image_id: str
    photograph: Photograph
    sha256: str
    read: str
    known: list[Raw] | None

    @property
    def n_known(self) -> int:
        """Views that need not be computed."""
        return _n_views(self.known)


def _n_views(raws: Sequence[Raw] | None) -> int:
    return raws[0].values_HVK.shape[1] if raws else 0


def _with_rows(sha256: str, rows: Sequence[np.ndarray]) -> str:
    """SHA-256 of a photograph and its rows; of one without rows its own."""
    beside = b"".join(row_C.tobytes() for row_C in rows)
    return hashlib.sha256(sha256.encode() + beside).hexdigest() if beside else sha256


def in_step(
    decodings: Sequence[Iterator[tuple[str, Decoded]]],
    image_ids: Sequence[str],
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
