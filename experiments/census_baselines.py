"""What a user would pick instead: python experiments/census_baselines.py -m experiments/census.yaml

Gradient boosting and logistic regression by scikit-learn, a model for each task, on the rows and the splits of the
experiment's config. They are searched as the networks are, with as many trials, chosen by the same metric of the
validation; their lines are in the same file. One seed is enough: with a validation part, neither draws random numbers.
"""

import importlib.metadata
import os
import sys
import time

import numpy as np
from run import ROOT, Runner, command_line, experiments

sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "census")]
import census_reader  # noqa: E402  (the path is set above)
from engine.config import load_config  # noqa: E402
from engine.errors import UserError  # noqa: E402

TASKS = ("income", "never_married")
ENDS = np.cumsum([census_reader.NUMBER_NUM, census_reader.CATEGORY_NUM, census_reader.NUMBER_NUM])
NUMBERS, CATEGORIES, BINS = (list(range(end - size, end)) for end, size in zip(ENDS, np.diff(ENDS, prepend=0)))
PREFIX = "baseline."  # of the keys of a trial, as runner. elsewhere
TRIALS = {  # as many for each as the networks have
    "gradient boosting": [
        {"categorical": False, "max_leaf_nodes": 31},
        {"categorical": False, "max_leaf_nodes": 15},
        {"categorical": True, "max_leaf_nodes": 15},
    ],
    "logistic regression": [{"bins": False, "C": 1.0}, {"bins": True, "C": 1.0}, {"bins": True, "C": 0.3}],
}


def boosting(train, validation, seed, categorical, max_leaf_nodes):
    """Gradient boosting, fitted; the validation decides how many trees. It cuts numbers itself, so it gets no bins.

    Args:
        train, validation: (features, labels).
        categorical: take the categories' ids as such; False: as numbers.
        max_leaf_nodes: of a tree.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=1000,
        max_leaf_nodes=max_leaf_nodes,
        early_stopping=True,
        n_iter_no_change=20,
        categorical_features=CATEGORIES if categorical else None,
        random_state=seed,
    )
    (x, y), (x_val, y_val) = train, validation
    model.fit(_without_bins(x), y, X_val=_without_bins(x_val), y_val=y_val)
    return make_pipeline(FunctionTransformer(_without_bins), model)


def _without_bins(features):
    return features[:, : BINS[0]]


def logistic(train, validation, seed, bins, C):
    """Logistic regression on the numbers and on one-hot categories, and on the numbers' bins if ``bins``, fitted."""
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


def metrics_of(models, features, labels):
    """Each task's AUC and log loss, and the sum of these as ``loss``, as the networks have them."""
    from sklearn.metrics import log_loss, roc_auc_score

    found = {}
    for task, model in models.items():
        probabilities = model.predict_proba(features)[:, 1]
        found[f"auc_{task}"] = float(roc_auc_score(labels[task], probabilities))
        found[f"logloss_{task}"] = float(log_loss(labels[task], probabilities))
    return {**found, "loss": sum(found[f"logloss_{task}"] for task in models)}


def fit_and_evaluate(parts, run):
    """Fit a model for each task; returns what run.py's ``train_and_evaluate`` returns, where it applies.

    Args:
        parts: name of a part -> its data.
        run: as there.
    """
    settings = {key[len(PREFIX) :]: value for key, value in run["overrides"].items()}
    (x, labels), (x_val, labels_val) = parts["train"], parts["validation"]
    fit, began = MODELS[run["network"]], time.perf_counter()
    models = {task: fit((x, labels[task]), (x_val, labels_val[task]), run["seed"], **settings) for task in TASKS}
    found = {"training_s": round(time.perf_counter() - began, 2), "validation": metrics_of(models, x_val, labels_val)}
    found["versions"] = {"sklearn": _sklearn_version(), "numpy": np.__version__}
    if run["stage"] != "search":
        features, labels = parts["test"]
        found["test"] = metrics_of(models, features, labels)
        began = time.perf_counter()
        for model in models.values():
            model.predict_proba(features)
        found["serve_examples_s"] = round(len(features) / (time.perf_counter() - began), 1)
    return found


def _sklearn_version():
    """The installed release of scikit-learn, if it is new enough: older ones take no validation part."""
    try:
        version = importlib.metadata.version("scikit-learn")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if [int(part) for part in version.split(".")[:2]] < [1, 7]:
        raise UserError("the baselines need scikit-learn 1.7 or newer. Run pip install 'scikit-learn>=1.7'.")
    return version


def run(path, stage="final"):
    """Run the baselines that the experiment at ``path`` still needs.

    Raises:
        UserError: a mistake that the message explains.
    """
    _sklearn_version()
    experiment = experiments.read(path)
    wanted = len(experiments.trials(experiment.search))
    if any(len(trials) != wanted for trials in TRIALS.values()):
        raise UserError(f"{path}: search has {wanted} trials. Give each baseline as many, in TRIALS of {__file__}.")
    config = load_config(experiment.config)
    try:
        parts = {part: read_part(config, part) for part in ("train", "validation", "test")}
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{experiment.config}: {error}") from error
    rows = {part: len(features) for part, (features, _) in parts.items()}

    def fingerprint(experiment, run):
        return experiments.digest({**run["overrides"], "seed": run["seed"], "rows": rows, "metric": experiment.metric})

    trials_of = {
        name: [{PREFIX + key: value for key, value in trial.items()} for trial in trials]
        for name, trials in TRIALS.items()
    }
    runner = Runner(experiment, lambda experiment, run: fit_and_evaluate(parts, run), fingerprint)
    runner.run(trials_of, experiment.seeds[:1], stage)


if __name__ == "__main__":
    command_line(__doc__, run)
