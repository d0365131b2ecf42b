"""What a user would pick instead: python experiments/census_baselines.py -m experiments/census.yaml

Gradient boosting and logistic regression by scikit-learn, a model for each task, on the rows and the splits of the
question's config. Searched as the networks are: as many trials, chosen by the same number of the validation, and their
lines are in the same file. One seed is enough: with a validation part given, neither draws random numbers.
"""

import importlib.metadata
import os
import sys
import time

import numpy as np
from run import ROOT, command_line, questions
from search import Search

sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "census")]
import census_reader  # noqa: E402  (likewise, the line above)
from engine.config import load_config  # noqa: E402  (run.py sets the path)
from engine.errors import UserError  # noqa: E402  (likewise)
from engine.saves import best  # noqa: E402  (likewise)

TASKS = ("income", "never_married")
ENDS = np.cumsum([census_reader.NUMBER_NUM, census_reader.CATEGORY_NUM, census_reader.NUMBER_NUM])
NUMBERS, CATEGORIES, BINS = (list(range(end - size, end)) for end, size in zip(ENDS, np.diff(ENDS, prepend=0)))
SETTINGS = "baseline."  # begins the keys of a trial, as runner. does elsewhere
TRIALS = {  # as many for each as the networks have
    "gradient boosting": [
        {"categorical": False, "max_leaf_nodes": 31},
        {"categorical": False, "max_leaf_nodes": 15},
        {"categorical": True, "max_leaf_nodes": 15},
    ],
    "logistic regression": [{"bins": False, "C": 1.0}, {"bins": True, "C": 1.0}, {"bins": True, "C": 0.3}],
}


def boosting(train, validation, seed, categorical, max_leaf_nodes):
    """Gradient boosting, fitted; the validation says how many trees.

    The numbers' bins are left out, for it cuts numbers itself.

    Args:
        train, validation: (features, labels).
        categorical: take the categories' ids as such; False: as numbers.
        max_leaf_nodes: of a tree.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=1000, max_leaf_nodes=max_leaf_nodes, early_stopping=True, n_iter_no_change=20,
        categorical_features=CATEGORIES if categorical else None, random_state=seed,
    )  # fmt: skip
    (x, y), (x_val, y_val) = train, validation
    model.fit(_without_bins(x), y, X_val=_without_bins(x_val), y_val=y_val)
    return make_pipeline(FunctionTransformer(_without_bins), model)


def _without_bins(features):
    return features[:, : BINS[0]]


def logistic(train, validation, seed, bins, C):
    """Logistic regression on the numbers and on one-hot categories, fitted.

    Args:
        train: (features, labels).
        validation: not needed.
        bins: take the numbers' bins too, as the networks do.
        C: the inverse of the penalty's strength.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    one_hot = OneHotEncoder(handle_unknown="ignore")
    features = make_column_transformer((one_hot, CATEGORIES + BINS * bins), ("passthrough", NUMBERS))
    return make_pipeline(features, LogisticRegression(C=C, max_iter=2000, random_state=seed)).fit(*train)


MODELS = {"gradient boosting": boosting, "logistic regression": logistic}


def read_part(config, part):
    """(features [N, 46]: numbers, ids; {task: labels [N]}) of the folder that a config names."""
    folder = os.path.join(config["config_abs_dir"], config[f"runner.{part}_data_dir"])
    dataset = census_reader.RecDataset([entry.path for entry in os.scandir(folder)], config=config)
    numbers, ids, *labels = dataset.gather(np.arange(len(dataset)))
    return np.concatenate([numbers, ids], axis=1), dict(zip(TASKS, labels))


def numbers_of(models, features, labels):
    """Each task's AUC and log loss, the sum of these as ``loss``, as the networks have them."""
    from sklearn.metrics import log_loss, roc_auc_score

    numbers = {}
    for task, model in models.items():
        probabilities = model.predict_proba(features)[:, 1]
        numbers[f"auc_{task}"] = float(roc_auc_score(labels[task], probabilities))
        numbers[f"logloss_{task}"] = float(log_loss(labels[task], probabilities))
    return {**numbers, "loss": sum(numbers[f"logloss_{task}"] for task in models)}


def measure(parts, run):
    """Fit a model for each task: what was measured, as run.py's ``measure`` gives it.

    Args:
        parts: name of a part -> its data.
        run: search.Run.
    """
    settings = {key[len(SETTINGS) :]: value for key, value in run.overrides.items()}
    (x, labels), (x_val, labels_val) = parts["train"], parts["validation"]
    began = time.perf_counter()
    models = {
        task: MODELS[run.network]((x, labels[task]), (x_val, labels_val[task]), run.seed, **settings) for task in TASKS
    }
    measured = {"training_s": round(time.perf_counter() - began, 2)}
    measured["validation"] = numbers_of(models, x_val, labels_val)
    measured["versions"] = {"sklearn": _sklearn_version(), "numpy": np.__version__}
    if run.stage != "search":
        features, labels = parts["test"]
        measured["test"] = numbers_of(models, features, labels)
        began = time.perf_counter()
        for model in models.values():
            model.predict_proba(features)
        measured["serve_examples_s"] = round(len(features) / (time.perf_counter() - began), 1)
    return measured


def _sklearn_version():
    """The installed release of scikit-learn, if it is new enough: older ones take no validation part."""
    try:
        version = importlib.metadata.version("scikit-learn")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version == "none" or [int(part) for part in version.split(".")[:2]] < [1, 7]:
        raise UserError(
            f"the baselines need scikit-learn 1.7 or newer, but {version} is installed. Run pip install "
            "'scikit-learn>=1.7'; it needs Python 3.10."
        )
    return version


def answer(path, stage="final"):
    """Run what is still needed beside the question at ``path``.

    Raises:
        UserError: a mistake that the message explains.
    """
    _sklearn_version()
    question = questions.read(path)
    trials_of = {
        name: [{SETTINGS + key: value for key, value in trial.items()} for trial in trials]
        for name, trials in TRIALS.items()
    }
    wanted = len(questions.trials(question.search))
    if any(len(trials) != wanted for trials in trials_of.values()):
        raise UserError(f"{path}: search has {wanted} trials. Give each baseline as many, in TRIALS of {__file__}.")
    config = load_config(question.config)
    try:
        parts = {part: read_part(config, part) for part in ("train", "validation", "test")}
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{question.config}: {error}") from error
    rows = {part: len(features) for part, (features, _) in parts.items()}

    def recipe(overrides, seed):
        return questions.digest({**overrides, "seed": seed, "rows": rows, "metric": question.metric})

    search = Search(
        question.results, question.metric, best.less_is_better(question.metric), lambda run: measure(parts, run), recipe
    )
    search.answer(trials_of, question.seeds[:1], stage)


if __name__ == "__main__":
    command_line(__doc__.splitlines()[0], answer)
