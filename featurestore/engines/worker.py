"""A worker's process: does one item after another, and ends with whoever started it."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from featurestore import errors
from featurestore.disk.interrupts import stopped_by_signals
from featurestore.disk.messages import say, secure_standard_streams, show_crashes
from featurestore.disk.refusals import as_ours
from featurestore.disk.threads import wait_asleep


def main() -> None:
    """Do the items that come as lines of JSON on stdin; a line on stdout answers each.

    The command line names task and device, as `featurestore.engines.local.run` takes them.
    """
    task, device = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # no buffer: its lock would keep a process that crashes from ending
    lines = os.fdopen(os.dup(0), "rb", buffering=0)
    os.dup2(2, 1)  # what a task prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    secure_standard_streams()
    show_crashes()
    wait_asleep()
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")

    items: SimpleQueue[dict | None] = SimpleQueue()
    busy = Event()
    with stopped_by_signals():
        Thread(target=_receive, args=(lines, items, busy), daemon=True).start()
        module, name = task.split(":")
        function = getattr(import_module(module), name)
        while (item := items.get()) is not None:
            busy.set()
            answer = answer_of(function, item | {"device": device})
            busy.clear()
            print(json.dumps(answer), file=answers, flush=True)


def _receive(lines: Iterable[bytes], items: SimpleQueue, busy: Event) -> None:
    """Hand items on; at their end stop what is being done, as a signal would."""
    for line in lines:
        items.put(json.loads(line))
    items.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def answer_of(function: Any, arguments: dict) -> dict:
    """What a task returned, or an error that a user can put right; a bug ends the process."""
    try:
        return {"answer": function(**arguments)}
    except Exception as err:
        told = as_ours(err)
        if told is None:
            raise
        ours = [kind.__name__ for kind in type(told).__mro__ if kind.__module__ == errors.__name__]
        return {"error": ours[0], "text": str(told)}


def value_of(name: str, answer: dict) -> Any:
    """What a task returned; its error is raised, under the item's name."""
    if "error" in answer:
        kind, text = getattr(errors, answer["error"]), answer["text"]
        raise kind(text if kind is errors.PartFailed else f"{name}: {text}")
    return answer["answer"]
