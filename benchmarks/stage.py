"""A table's variants on their worker processes: built, checked against the dense mixture, timed in turns."""

import collections
import os

import case as cases
import figures
import numpy as np
import workers

REFERENCE = workers.Settings(threads=1)  # of the process that writes the cases
PREDICTIONS, LOSSES = 1e-4, 1e-3  # greatest difference of a logit; of a loss, relative

# which of workers.TUNED are set -> in words
SETTINGS = {
    workers.TUNED: "tuned",
    (): "default settings",
    ("use_fast_path",): "MKL's fast path",
    ("keep_freed_memory",): "memory kept",
}

# options: of the kind's class, see worker.KINDS; job: train, infer, or rate for what has no case
Variant = collections.namedtuple("Variant", "name kind job case options settings")


class Disagreement(Exception):
    """A variant computes something else than the dense mixture."""


class Stage:
    """Use as a context manager; leaving it ends the workers.

    Args:
        folder: for the files of cases and answers.
    """

    def __init__(self, folder):
        self.folder = folder
        self.workers, self.variants = {}, []
        self.reference = None  # the worker that writes the cases
        self.absent = {}  # name -> why
        self.greatest_difference = None  # of a prediction from the dense mixture's

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker in self.workers.values():
            worker.__exit__(*error)
        self._end_reference()

    def _end_reference(self):
        if self.reference is not None:
            self.reference.__exit__()
            self.reference = None

    def worker(self, settings):
        """The process with these settings; all variants that need them share it.

        Raises:
            Absent: its interpreter has not what it needs.
        """
        if settings not in self.workers:
            self.workers[settings] = workers.Worker(settings, self.folder)
        return self.workers[settings]

    def case(self, hyper, batch, settled):
        """Have a case written: see ``ours.write_reference``. Returns its path, or the reason why it cannot be."""
        path = os.path.join(self.folder, f"case{len(os.listdir(self.folder))}.npz")
        try:
            if self.reference is None:
                self.reference = workers.Worker(REFERENCE, self.folder)
            self.reference.ask("reference", case={"hyper": hyper, "batch": batch, "settled": settled}, path=path)
        except workers.Absent as why:
            return why
        return path

    def add(self, name, kind, job, case, settings, **options):
        """Build a variant and check its answers; one that cannot be here goes to ``absent``, with the reason."""
        variant = Variant(name, kind, job, case, options, settings)
        outputs = os.path.join(self.folder, f"outputs{len(os.listdir(self.folder))}.npz")
        try:
            if isinstance(case, workers.Absent):
                raise case
            self.worker(settings).ask(
                "build", name=name, kind=kind, job=job, case=case, options=options, outputs=outputs
            )
        except workers.Absent as why:
            self.absent[name] = str(why)
            return
        if job != "rate":
            self.check(name, cases.Case(case), outputs)
        self.variants.append(variant)

    def check(self, name, case, outputs):
        """Compare a variant's answers with a case's.

        Raises:
            Disagreement: they differ.
        """
        with np.load(outputs) as answers:
            difference = max(float(np.abs(answers[f"logits{t}"] - z).max()) for t, z in enumerate(case.logits))
            if not difference <= PREDICTIONS:
                raise Disagreement(f"{name}: a prediction is {difference:.1e} away from the dense mixture's")
            self.greatest_difference = max(self.greatest_difference or 0.0, difference)
            if "losses" in answers:
                off = float(np.abs(answers["losses"] / case.losses - 1).max())
                if not off <= LOSSES:
                    raise Disagreement(
                        f"{name}: the losses of the first two steps are {answers['losses']}, "
                        f"the dense mixture's {case.losses}"
                    )

    def times(self, rounds, turn_s):
        """{name: [seconds a step, one number a round]} of all variants, taking turns."""
        self._end_reference()  # it has done its work, and keeps what dense steps have needed
        return workers.take_turns([_Turns(self, variant) for variant in self.variants], rounds, turn_s)

    def ask(self, variant, do, **facts):
        """Ask a variant's worker about it."""
        return self.worker(variant.settings).ask(do, name=variant.name, **facts)


class _Turns:
    def __init__(self, stage, variant):
        self.stage, self.variant, self.name = stage, variant, variant.name
        self.active = cases.Case(variant.case).active if variant.job == "train" else None

    def steps(self, count):
        answer = self.stage.ask(self.variant, "steps", count=count)
        if answer["used"] is not None and answer["used"] != len(self.active):
            raise Disagreement(f"{self.name}: {answer['used']} experts were in use, not {len(self.active)}")
        return answer["seconds"]


def rows(stage, times, examples, against):
    """A table's rows; see ``figures.columns``. Absent variants come last, with the reason."""
    found = []
    for variant in stage.variants:
        row = {"variant": variant.name, "process": describe(variant), "seconds": times[variant.name]}
        found.append({**row, **figures.columns(variant.name, times, examples, against)})
    return found + [{"variant": name, "process": f"absent: {why}"} for name, why in stage.absent.items()]


def describe(variant):
    """Process settings and threads in words."""
    settings = variant.settings
    threads = variant.options.get("threads", settings.threads)
    words = [SETTINGS[settings.tuned]]
    if variant.options.get("fast"):
        words.append("channels-last, fused Adam" if variant.job == "train" else "channels-last")
    words.append("default threads" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}")
    if settings.one_core:
        words.append("one core")
    if variant.kind == "package":
        words.append("another function, not checked")
    return ", ".join(words)
