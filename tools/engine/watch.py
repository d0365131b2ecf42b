"""Finds out which of several processes has ended, hangs or cannot be reached.

Each process counts in Paddle's store that it lives, and which steps it has taken. Nobody looks at these counts until
something fails, for Paddle's own errors do not name the process.
"""

import contextlib
import itertools
import os
import socket
import threading
import time

BEAT = 0.4  # seconds between two signs of life
SILENT = 1.6  # seconds without one, after a failure, that make a process count as lost
MOST_ASKED = 16  # processes that one asks after: each takes 0.04 s
UNREACHABLE = "process 0, through which the others meet, has ended or cannot be reached"
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
        with self.lock:
            return self.store.add(f"dselect_k/{self.run}/{name}", number)

    def set(self, name, text):
        """Set a text that all processes see."""
        with self.lock:
            self.store.set(f"dselect_k/{self.run}/{name}", text.encode())

    def get(self, name):
        """A text that has been set."""
        with self.lock:
            return self.store.get(f"dselect_k/{self.run}/{name}").decode()

    def _live(self):
        told = 0
        with contextlib.suppress(Exception):  # the store is gone: the job has ended
            while not self.closed.wait(BEAT):
                self.add(f"beat/{self.rank}", 1)
                steps = self.steps
                if steps > told:
                    self.add(f"steps/{self.rank}", steps - told)
                    told = steps

    def ended(self):
        """What the first process to fail has said of that; None if none has."""
        try:
            return self.get("end/1") if self.add("end", 0) else None
        except Exception:
            return f"{UNREACHABLE}."

    def find_lost(self):
        """A sentence about the process that has been lost, if one has; else None. Takes some seconds."""
        try:
            before = self._beats()
            until = time.monotonic() + SILENT
            while time.monotonic() < until:
                said = self.ended()
                if said:
                    return said
                time.sleep(BEAT / 2)
            return self._silent(before) or self._behind()
        except Exception:
            return f"{UNREACHABLE}."

    def who_is_silent(self):
        """``find_lost`` as the end of a sentence."""
        return f": {self._silent(self._beats(), after=SILENT) or self._behind() or 'all are alive.'}"

    def _others(self):
        return [(self.rank + i) % self.number for i in range(1, min(self.number, MOST_ASKED + 1))]

    def _beats(self):
        return {rank: self.add(f"beat/{rank}", 0) for rank in self._others()}

    def _silent(self, before, after=0.0):
        time.sleep(after)
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
        self.thread.join()
        with contextlib.suppress(Exception):
            if message is not None:
                number = self.add("end", 1)
                self.set(f"end/{number}", f"process {self.rank} ({self.get(f'host/{self.rank}')}) has ended: {message}")
