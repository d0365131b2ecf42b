"""Finds out which of several processes has ended, hangs or cannot be reached.

Each process counts in Paddle's store that it lives, and which steps it has taken. Others look at these counts when
something fails, for Paddle's own errors do not name the process. One that fails says so there, and the others end.
"""

import contextlib
import itertools
import os
import socket
import sys
import threading
import time

from engine.errors import Lost

BEAT = 0.4  # seconds between two signs of life
SILENT = 1.6  # seconds without one, after a failure, that make a process count as lost
STUCK = 3.0  # seconds for which one waits for the store's answer, which takes 0.05 s
LONG_SILENT = 15.0  # seconds without a sign of life, while one waits for a process, that make it count as lost
MOST_ASKED = 16  # processes that one asks after: each takes 0.04 s
UNREACHABLE = "process 0, through which the others meet, has ended or cannot be reached"


def in_time(ask):
    """What ``ask()`` gives; a sentence, if the store does not answer: a read from it may wait for ever."""
    found = []

    def run():
        with contextlib.suppress(Exception):  # the store is gone
            found.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SILENT + STUCK)
    return found[0] if found else f"{UNREACHABLE}."


_runs = itertools.count()  # of this process: all processes take part in the same ones


class Watch:
    """The signs of life of a job's processes.

    Args:
        store: Paddle's, which the process of rank 0 keeps.
        rank, number: of this process, and of all.
    """

    def __init__(self, store, rank, number):
        self.store, self.rank, self.number = store, rank, number
        self.run = next(_runs)
        self.steps = 0  # taken by this process
        self.lock, self.closed = threading.Lock(), threading.Event()
        self.set(f"host/{rank}", f"{socket.gethostname()}, process id {os.getpid()}")
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def add(self, name, number):
        """Add to a number that all processes see, and give the sum."""
        return self._ask(lambda: self.store.add(f"dselect_k/{self.run}/{name}", number))

    def set(self, name, text):
        """Set a text that all processes see."""
        self._ask(lambda: self.store.set(f"dselect_k/{self.run}/{name}", text.encode()))

    def get(self, name):
        """A text that has been set."""
        return self._ask(lambda: self.store.get(f"dselect_k/{self.run}/{name}")).decode()

    def _ask(self, ask):
        if not self.lock.acquire(timeout=STUCK):
            raise TimeoutError(UNREACHABLE)
        try:
            return ask()
        finally:
            self.lock.release()

    def _live(self):
        told = 0
        with contextlib.suppress(Exception):  # the store is gone: the job has ended
            while not self.closed.wait(BEAT):
                self.add(f"beat/{self.rank}", 1)
                steps = self.steps
                if steps > told:
                    self.add(f"steps/{self.rank}", steps - told)
                    told = steps
                if self.add("end", 0):
                    self._end_with(self.get("end/1"))

    def _end_with(self, said):
        """End this process too, if it does not by itself: it may wait for the one that has failed."""
        if not self.closed.wait(SILENT):
            print(f"error: {said}", file=sys.stderr, flush=True)
            os._exit(Lost.code)

    def ended(self):
        """The message of the first process that has failed; None if none has."""
        return in_time(lambda: self.get("end/1") if self.add("end", 0) else None)

    def find_lost(self):
        """A sentence about the process that has been lost, if one has; else None. Takes some seconds."""

        def find():
            before = self._beats()
            until = time.monotonic() + SILENT
            while time.monotonic() < until:
                if self.add("end", 0):
                    return self.get("end/1")
                time.sleep(BEAT / 2)
            return self._silent(before) or self._behind()

        return in_time(find)

    def who_is_silent(self):
        """``find_lost`` as the end of a sentence."""
        return f": {self.find_lost() or 'all are alive.'}"

    def look(self, seen):
        """A sentence about the processes that have been silent for long, while one waits for them; None if none has.

        Args:
            seen: dict that this keeps from look to look.
        """

        def find():
            now = time.monotonic()
            for rank, beats in self._beats().items():
                if seen.get(rank, (None,))[0] != beats:
                    seen[rank] = beats, now
            silent = [rank for rank, (_, since) in seen.items() if now - since > LONG_SILENT]
            return f"{self._named(silent)} no sign of life for {LONG_SILENT:g} s." if silent else None

        return in_time(find)

    def _others(self):
        return [(self.rank + i) % self.number for i in range(1, min(self.number, MOST_ASKED + 1))]

    def _beats(self):
        return {rank: self.add(f"beat/{rank}", 0) for rank in self._others()}

    def _silent(self, before):
        silent = [rank for rank, beats in self._beats().items() if beats == before[rank]]
        return f"{self._named(silent)} no sign of life for {SILENT:g} s." if silent else None

    def _behind(self):
        behind = [rank for rank in self._others() if self.add(f"steps/{rank}", 0) < self.steps - 1]
        return f"{self._named(behind)} not come to step {self.steps} of this run." if behind else None

    def _named(self, ranks):
        named = [f"process {rank} ({self.get(f'host/{rank}')})" for rank in ranks]
        return ", ".join(named) + (" has" if len(named) == 1 else " have")

    def close(self, message=None):
        """This process ends; ``message``: the cause, if it fails and is not the victim of another."""
        self.closed.set()
        self.thread.join(STUCK)
        with contextlib.suppress(Exception):
            if message is not None:
                number = self.add("end", 1)
                self.set(f"end/{number}", f"process {self.rank} ({self.get(f'host/{self.rank}')}) has ended: {message}")
