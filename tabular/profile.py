"""What the training rows of a table, read in blocks, say of its columns: for vocabulary.json and a first config."""

import collections
import math

import numpy as np

from tabular import about
from tabular import files as table_files
from tabular.categories import HashedIds
from tabular.columns import NotNumbers, texts_at
from tabular.numbers import SCALES
from tabular.values import NULL_TEXTS
from tabular.vocabulary import LABELS_ARE

FEW_PIECES, PIECES = 16, 64  # of the range of a dense column
MANY_ROWS, MANY_COLUMNS = 20_000, 16  # fewer rows, or more columns, have few pieces
ENCODINGS = ("pieces", "plain", "log", "bins")  # log: in pieces, on a log scale; bins: each with an embedding
SAMPLED = 100_000  # numbers of a column that the edges of its pieces are taken from


class Sample:
    """Numbers of a column, drawn at random with the same chance for each row: as many as ``SAMPLED``, or all."""

    def __init__(self):
        self.rng, self.numbers, self.draws, self.limit = np.random.default_rng(0), np.zeros(0), np.zeros(0), 1.0

    def add(self, numbers):
        """Add float64 [N]: those with the least draws are kept, and up to as many again."""
        draws = self.rng.random(len(numbers))
        kept = draws < self.limit
        self.numbers = np.concatenate([self.numbers, numbers[kept]])
        self.draws = np.concatenate([self.draws, draws[kept]])
        if len(self.numbers) > 2 * SAMPLED:
            self._prune()

    def _prune(self):
        if len(self.numbers) > SAMPLED:
            kept = np.argpartition(self.draws, SAMPLED)[:SAMPLED]
            self.numbers, self.draws = self.numbers[kept], self.draws[kept]
            self.limit = self.draws.max()

    def edges(self, pieces):
        """The edges of ``pieces`` pieces with equally many numbers; fewer if there are too few different numbers.

        A number that fills a piece or more by itself, as zero often does, is an edge, and the other pieces are made of
        the rest: few rows with a positive amount can tell more than many without one.
        """
        self._prune()
        edges, rest = np.unique([self.numbers.min(), self.numbers.max()]), self.numbers
        while len(rest) and (missing := pieces + 1 - len(edges)) > 0:
            points = missing + np.isin([rest.min(), rest.max()], edges).sum()  # those two are no new edges
            found, times = np.unique(np.quantile(rest, np.linspace(0, 1, points)), return_counts=True)
            repeated = found[times > 1]
            edges = np.union1d(edges, np.setdiff1d(repeated if len(repeated) else found, edges)[:missing])
            rest = rest[~np.isin(rest, repeated)] if len(repeated) else rest[:0]
        return [float(edge) for edge in edges] if len(edges) > 1 else []

    def edges_of_bins(self, bins):
        """The edges between up to ``bins`` bins with equally many numbers.

        A number that fills a bin or more by itself, as zero often does, is the greatest or the least of its bin, and
        the other bins are made of the rest. Each edge lies midway between two numbers: so a number is in the same bin
        if it has been rounded, to float32 for instance, and no bin is empty.
        """
        self._prune()
        values, counts = np.unique(self.numbers, return_counts=True)
        is_frequent = counts * bins >= len(self.numbers)
        rest, number = self.numbers[np.isin(self.numbers, values[~is_frequent])], bins - int(is_frequent.sum())
        between = np.quantile(rest, np.arange(1, number) / number) if len(rest) else []
        # how many of the values are below an edge; there is none above the greatest value
        below = {*np.flatnonzero(is_frequent) + 1, *np.searchsorted(values, between, side="right")}
        if is_frequent[-1]:
            below.add(len(values) - 1)
        below = np.array(sorted(below - {0, len(values)}), int)
        middle = (values[below - 1] + values[below]) / 2
        return np.minimum(middle, np.nextafter(values[below], -math.inf)).tolist()


class Summary:
    """Count, mean, deviation, least and greatest of a column's numbers, added block by block."""

    def __init__(self, has_log=False, has_sample=False, scale=""):
        self.scale = scale  # one of numbers.SCALES, for all but least and greatest
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # squares: of the distances from the mean
        self.log = Summary() if has_log else None  # of log(1 + number), if no number is below 0
        self.sample = Sample() if has_sample else None
        self.least, self.greatest, self.whole, self.missing = math.inf, -math.inf, True, 0

    def add(self, column):
        """Add numbers: float64 [N], nan where missing."""
        numbers = column[~np.isnan(column)]
        self.missing += len(column) - len(numbers)
        if not len(numbers):
            return
        self.least, self.greatest = min(self.least, float(numbers.min())), max(self.greatest, float(numbers.max()))
        numbers = SCALES[self.scale](numbers)
        with np.errstate(over="ignore"):  # then the deviation is infinite, which is refused
            mean, count = float(numbers.mean()), self.count + len(numbers)
            squares = float(((numbers - mean) ** 2).sum())
        distance = mean - self.mean
        self.squares += squares + distance * distance * self.count * len(numbers) / count
        self.mean += distance * len(numbers) / count
        self.count = count
        if self.sample is not None:
            self.sample.add(numbers)
        self.whole &= bool((numbers == np.floor(numbers)).all())
        if self.log is not None and self.least >= 0:
            self.log.add(np.log1p(numbers))

    def deviation(self):
        """The standard deviation; 1 if all numbers are equal."""
        return math.sqrt(self.squares / self.count) if self.least < self.greatest else 1.0


class Sparse:
    """What a user asks for a column of categories, and what its rows say.

    Args:
        column, pooling, separator, like: see ``categories.Category``.
        hash: number of ids, if they are hashes; 0: those of a list of values.
    """

    def __init__(self, column, pooling="", separator="", like="", hash=0):
        self.column, self.pooling, self.separator, self.like, self.hash = column, pooling, separator, like, hash
        self.counter = collections.Counter()  # of values, if they are not hashed
        self.hashed = HashedIds(column, hash) if hash else None
        self.used = np.zeros(hash + 1, bool)  # which ids of hashes
        self.filled = self.missing = 0  # values; fields that are empty
        self.rows, self.longest = 0, 0  # of lists

    def add(self, codes, texts):
        """Add values: codes int [N], which number texts."""
        counts = np.bincount(codes, minlength=len(texts))
        present = np.flatnonzero(counts)
        texts, counts = texts_at(texts, present), counts[present].tolist()
        empty = sum(count for text, count in zip(texts, counts) if not text)
        self.filled, self.missing = self.filled + len(codes) - empty, self.missing + empty
        if self.hashed:
            self.used[self.hashed.of(texts)] = True
        else:
            for text, count in zip(texts, counts):  # " a" and "a" are the same text
                self.counter[text] += count

    def add_lists(self, lengths, codes, texts):
        """Add lists: lengths int [N], codes of all their values."""
        self.add(codes, texts)
        self.rows, self.longest = self.rows + len(lengths), max(self.longest, int(lengths.max(initial=0)))

    def distinct(self):
        """Number of different values; of hashes an estimate, infinite if all ids are used.

        The estimate is linear counting (Whang et al., ACM TODS 15(2), 1990): -N ln(share of the N ids not used).
        """
        if not self.hashed:
            return len(self.counter) - ("" in self.counter)
        unused = self.hash - int(self.used[1:].sum())
        return self.hash * math.log(self.hash / unused) if unused else math.inf

    def collisions(self):
        """The share of values whose hash is that of another value too."""
        return 1 - (1 - 1 / self.hash) ** max(self.distinct() - 1, 0)


class Columns:
    """What the training rows say of the columns.

    Args:
        dense, labels: names of columns.
        encoded: how columns of ``dense`` are encoded, one of ``ENCODINGS``; the others in pieces.
        sparse: list of Sparse, those with one id before those with lists.
        in_words: those of the labels that are names of classes.
        about: "weight" and "group" -> column, those that there are.
    """

    def __init__(self, dense, sparse, labels, in_words=(), about=None, encoded=()):
        self.about = about or {}
        self.encoded, self.names = dict(encoded), list(labels)
        scales = {name: "log" if self.encoded.get(name) == "log" else "" for name in dense}
        self.dense = {name: Summary(has_sample=True, scale=scale) for name, scale in scales.items()}
        self.labels = {name: Summary(has_log=True) for name in labels if name not in in_words}
        self.classes = {name: Sparse(name) for name in in_words}
        self.all_sparse = {of.column: of for of in sparse}
        for of in (of for of in sparse if of.like and of.hash):
            of.used = self.all_sparse[of.like].used  # they share ids, so their values meet each other's
        self.sparse = {of.column: of for of in sparse if not of.pooling}
        self.lists = {of.column: of for of in sparse if of.pooling}
        self.unequal = set()  # pairs of an input's column and a label's that differ in some row
        self.rows = self.bad = 0
        self.first_bad = self.without_numbers = None  # where the first bad row is; the first NotNumbers

    def read(self, file, skips):
        """Add the rows of a file of ``table_files.open_files``.

        Raises:
            ValueError: it cannot be read, or lacks one of these columns; or a row is bad, unless ``skips``.
        """
        weights, groups = about.columns(self.about)
        numbers = [*self.dense, *self.labels, *weights]
        texts = [*dict.fromkeys([*self.sparse, *self.classes, *groups])]
        lists = [(of.column, of.separator) for of in self.lists.values()]
        table_files.check_columns(file, [*numbers, *texts, *self.lists])
        try:
            for part in file.parts():
                for block in part.blocks():
                    self._add(block.read(numbers, texts, lists), skips)
        except NotNumbers as error:
            if self._is_in_words(error.column):
                raise
            remedies = {**dict.fromkeys(weights, about.WEIGHTS_ARE), **dict.fromkeys(self.labels, LABELS_ARE)}
            remedy = remedies.get(error.column, "Name it in --sparse, or write numbers.")
            raise ValueError(f"{error} {remedy}") from error

    def _is_in_words(self, column):
        """Whether a column without numbers in a block is one of labels that has had none before either."""
        return column in self.labels and not self.labels[column].count

    def _add(self, rows, skips):
        if rows.without_numbers and (not skips or self._is_in_words(rows.without_numbers.column)):
            raise rows.without_numbers
        about.refuse(rows, self.about)
        if rows.bad_num():
            if not skips:
                raise ValueError(f"{rows.first_bad()}. Correct the row, or give --skip-bad-rows.")
            self.first_bad = self.first_bad or rows.first_bad()
            self.without_numbers = self.without_numbers or rows.without_numbers
            self.bad += rows.bad_num()
        for name, summary in {**self.dense, **self.labels}.items():
            summary.add(rows.numbers[name][rows.good])
        for name, sparse in {**self.sparse, **self.classes}.items():
            codes, texts = rows.categories[name]
            sparse.add(codes[rows.good], texts)
        for name, sparse in self.lists.items():
            lengths, codes, texts = rows.lists[name]
            sparse.add_lists(lengths[rows.good], codes[np.repeat(rows.good, lengths)], texts)
        self._compare(rows)
        self.rows += int(rows.good.sum())

    def _compare(self, rows):
        """Note which columns of inputs are not equal to which labels."""
        for column, label in ((c, n) for c in self.dense for n in self.labels if (c, n) not in self.unequal):
            of_both = [rows.numbers[name][rows.good] for name in (column, label)]
            if (of_both[0] != of_both[1])[~np.isnan(of_both[1])].any():
                self.unequal.add((column, label))
        for column, label in ((c, n) for c in self.sparse for n in self.classes if (c, n) not in self.unequal):
            texts = [np.array(of[1])[of[0][rows.good]] for of in (rows.categories[column], rows.categories[label])]
            if (texts[0] != texts[1])[~np.isin(texts[1], list(NULL_TEXTS))].any():
                self.unequal.add((column, label))

    def is_equal(self, column, label):
        """Whether a column of the inputs has the label's value in every row that has one."""
        of_a_kind = column in (self.dense if label in self.labels else self.sparse)
        has_labels = self.labels[label].count if label in self.labels else class_names(self.classes[label].counter)
        return of_a_kind and bool(has_labels) and (column, label) not in self.unequal

    def default_pieces(self):
        """How many pieces the range of a dense column is cut into, if the user does not say.

        More tell nearby numbers apart; but then a piece has fewer rows, and there are more inputs.
        """
        return PIECES if self.rows >= MANY_ROWS and len(self.dense) <= MANY_COLUMNS else FEW_PIECES

    def vocabulary(self, min_count=1, max_size=None, pieces=None):
        """The content of vocabulary.json.

        Args:
            min_count: how often a value must occur to have an id.
            max_size: how many values of a sparse column have ids, the most frequent ones; None: all.
            pieces: how many pieces the range of a dense column is cut into; 0: none, and no bounds; None: see
                ``default_pieces``.
        Raises:
            ValueError: there are no rows, or a dense column is empty, or the variance of a column is infinite.
        """
        if not self.rows:
            problem = self.without_numbers or f"The first: {self.first_bad}"
            raise ValueError(f"all rows are bad. {problem}" if self.bad else "these files have no rows.")
        for name, summary in {**self.dense, **self.labels}.items():
            if not summary.count and name in self.dense:
                raise ValueError(f"the column {name} is empty in all rows. Remove it from --dense.")
            if summary.count and not math.isfinite(summary.mean + summary.deviation()):
                raise ValueError(f"the numbers of {name} reach {summary.greatest:g}: too far apart for a variance.")
        pieces = self.default_pieces() if pieces is None else pieces
        numbers = [
            _number(name, summary, 0 if self.encoded.get(name) == "plain" else pieces)
            for name, summary in self.dense.items()
            if self.encoded.get(name) != "bins"
        ]
        categories = [self._category(of, min_count, max_size) for of in self.all_sparse.values()]
        for name in (name for name in self.dense if self.encoded.get(name) == "bins"):
            categories.append({"column": name, "edges": self.dense[name].sample.edges_of_bins(pieces)})
        labels = [{"column": name} for name in self.names]
        return {"rows": self.rows, "numbers": numbers, "categories": categories, "labels": labels, **self.about}

    def _category(self, sparse, min_count, max_size):
        """One of ``categories`` in vocabulary.json."""
        entry = {"column": sparse.column}
        if sparse.pooling:
            entry.update(pooling=sparse.pooling, separator=sparse.separator)
        if sparse.like:
            return {**entry, "like": sparse.like}
        if sparse.hash:
            return {**entry, "hash": sparse.hash}
        counter = collections.Counter()
        for other in self.all_sparse.values():
            if other is sparse or other.like == sparse.column:
                counter.update(other.counter)
        return {**entry, "values": _chosen(counter, min_count, max_size)}


def _number(name, summary, pieces):
    """One of ``numbers`` in vocabulary.json."""
    entry = {"column": name, "mean": summary.mean, "deviation": summary.deviation()}
    if summary.scale:
        entry["scale"] = summary.scale
    if pieces:
        edges = summary.sample.edges(pieces)
        if edges:  # of the sample, but for the ends
            edges[0], edges[-1] = map(float, SCALES[summary.scale](np.array([summary.least, summary.greatest])))
        entry.update(edges=edges, missing=summary.missing > 0)
    return entry


def class_names(counter):
    """The names of a column's classes, sorted."""
    return sorted(text for text in counter if text not in NULL_TEXTS)


def _chosen(counter, min_count, max_size):
    values = [value for value, count in counter.items() if value and count >= min_count]
    return sorted(sorted(values, key=lambda value: (-counter[value], value))[:max_size])
