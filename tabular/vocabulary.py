"""vocabulary.json: how the columns of a table become numbers. ``data/make_vocabulary.py`` makes it of training rows.

``numbers`` are standardised by the mean and the deviation given for each column. ``categories`` have a list of values
each: a value's id is its place in it, from 1; id 0 is for values that are not in it, and for empty fields.
``labels`` are names of columns, in the order of the tasks. ``labels`` is optional; unknown keys are ignored.
"""

import itertools
import json
import math

import numpy as np

DENSE, SIZES = "hyper_parameters.input.dense_size", "hyper_parameters.input.vocabulary_sizes"


class Vocabulary:
    """What a file of this form says.

    Args:
        path: of the file.
    Raises:
        ValueError: it cannot be read, or has another form.
    """

    def __init__(self, path):
        self.path = path
        try:
            with open(path, "rb") as file:
                form = json.loads(file.read())
            self.numbers = [(str(c["column"]), float(c["mean"]), float(c["deviation"])) for c in form["numbers"]]
            self.categories = [(str(c["column"]), [str(v) for v in c["values"]]) for c in form["categories"]]
            self.labels = [str(c["column"]) for c in form.get("labels", [])]
            self._check()
        except OSError as error:
            raise ValueError(f"{path}: the vocabulary cannot be read ({error.strerror}).") from error
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: this is no vocabulary ({reason:.200}). Make it again.") from error
        self.ids = [{value: i for i, value in enumerate(values, 1)} for _, values in self.categories]

    def _check(self):
        for column, mean, deviation in self.numbers:
            if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
                raise ValueError(f"the mean or deviation of {column} is not finite, or not > 0")
        for column, values in self.categories:
            if len(set(values)) < len(values) or "" in values:
                raise ValueError(f"a value of {column} is empty or stands there twice")
        names = [*self.inputs(), *self.labels]
        if len(set(names)) < len(names) or not self.inputs():
            raise ValueError("it has no column, or one twice")

    def inputs(self):
        """Names of the columns that are the network's inputs."""
        return [name for name, *_ in (*self.numbers, *self.categories)]

    def sizes(self):
        """Number of ids of each category, id 0 included."""
        return [len(values) + 1 for _, values in self.categories]

    def check_config(self, config):
        """Raise ValueError if a config describes other inputs."""
        for key, mine in ((DENSE, len(self.numbers)), (SIZES, self.sizes())):
            given = config.get(key) or type(mine)()
            if given != mine:
                raise ValueError(
                    f"{self.path}: its columns have {key.rpartition('.')[2]} {mine}, but {key} is {given}. "
                    "Set the one to the other, or give the vocabulary that the config is for."
                )

    def dense(self, columns):
        """The standardised numbers of some rows; the mean, which is 0, where a field is empty.

        Args:
            columns: name -> float64 [N], nan where it is empty; or a list, None where it is empty.
        Returns:
            float32 [N, number of columns]; infinite where a number does not fit float32.
        """
        made = np.empty([len(columns[self.numbers[0][0]]), len(self.numbers)], np.float32)
        with np.errstate(over="ignore"):
            for i, (name, mean, deviation) in enumerate(self.numbers):
                made[:, i] = (np.asarray(columns[name], np.float64) - mean) / deviation
        made[np.isnan(made)] = 0
        return made

    def encode(self, columns):
        """The ids of some rows.

        Args:
            columns: name -> (codes int [N], values): a row has the text that its code numbers. Or a list of N
                texts or whole numbers, None for an empty field.
        Returns:
            int32 [N, number of categories].
        """
        ids = []
        for (name, _), id_of in zip(self.categories, self.ids):
            codes, values = columns[name] if isinstance(columns[name], tuple) else _as_codes(columns[name])
            of_values = np.fromiter(map(id_of.get, values, itertools.repeat(0)), np.int32, len(values))
            ids.append(of_values[codes])
        return np.stack(ids, axis=1)


def _as_codes(column):
    """A list of values as (codes, texts)."""
    return np.arange(len(column)), ["" if value is None else str(value).strip() for value in column]
