"""From trials to figures: each network's best trial on the validation, then that one with every seed."""

import collections
import time

import lines
import machine_facts

from engine.errors import UserError

Run = collections.namedtuple("Run", "stage network overrides seed recipe")


class RunFailed(Exception):
    """A run ended with an error, which its line will have."""


class Search:
    """Runs what has no line yet, and adds the lines.

    Args:
        path: of the file of result lines.
        metric: name of the validation's number that chooses.
        less_is_better: of that number.
        measure: (Run) -> dict of what was measured, with ``validation``: name -> number; may raise RunFailed.
        recipe: (overrides, seed) -> text that tells the run from others.
    """

    def __init__(self, path, metric, less_is_better, measure, recipe):
        self.path, self.metric, self.sign = path, metric, -1 if less_is_better else 1
        self.measure, self.recipe = measure, recipe
        self.lines = lines.read(path)

    def answer(self, trials_of, seeds, stage="final"):
        """All runs of a question.

        Args:
            trials_of: network -> its trials, each a dict of overrides.
            seeds: of the chosen trials; the trials themselves have the first.
            stage: "final"; or "speed": the chosen trials once more, with the first seed.
        Raises:
            UserError: runs failed; those of the other networks have been done all the same.
        """
        chosen = {network: self._best(network, trials, seeds[0]) for network, trials in trials_of.items()}
        failed = [network for network, overrides in chosen.items() if overrides is None]
        for seed in seeds if stage == "final" else seeds[:1]:
            for network, overrides in chosen.items():
                if overrides is not None and "error" in self._line(stage, network, overrides, seed):
                    failed.append(network)
        if failed:
            raise UserError(
                f"{self.path}: runs of {', '.join(dict.fromkeys(failed))} failed. Their lines say why; remove them to "
                "try again."
            )

    def _best(self, network, trials, seed):
        """The trial whose validation is best, the first of equals; None if every one failed."""
        if len(trials) == 1:
            return trials[0]
        found = [self._line("search", network, overrides, seed) for overrides in trials]
        scores = [line.get("validation", {}).get(self.metric) for line in found]
        known = [place for place, score in enumerate(scores) if score is not None]
        if not known:
            return None
        return trials[max(known, key=lambda place: (self.sign * scores[place], -place))]

    def _line(self, stage, network, overrides, seed):
        """The line of a run, which is run if it has none."""
        run = Run(stage, network, overrides, seed, self.recipe(overrides, seed))
        line = lines.find(self.lines, stage, network, run.recipe)
        if line is None:
            line = self._measured(run)
            lines.add(self.path, line)
            self.lines.append(line)
            outcome = line.get("error") or f"validation {self.metric} {line['validation'].get(self.metric)}"
            keys = " ".join(f"{key}={value}" for key, value in overrides.items())
            print(f"{stage}, {network}, {keys}, seed {seed}: {outcome} ({line['seconds']:.0f} s)")
        return line

    def _measured(self, run):
        facts = {"machine": machine_facts.machine(), "commit": machine_facts.commit(except_for="*.jsonl")}
        began = time.perf_counter()
        try:
            measured = self.measure(run)
        except RunFailed as error:
            measured = {"error": str(error)}
        return {**run._asdict(), **measured, "seconds": round(time.perf_counter() - began, 2), **facts}
