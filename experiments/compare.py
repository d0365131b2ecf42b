"""Which networks of an experiment are better than one of them? experiments/compare.py -m FILE.yaml --than NETWORK

A row for each other network: of each metric that the experiment reports, the mean over the seeds of the difference from
the network given, and the p-value of a paired t-test over the seeds that both have. The p-values of the whole table are
corrected for the number of comparisons by Benjamini and Hochberg's procedure (1995): of the differences with p below
0.05, one in twenty is expected to be chance. Needs scipy.
"""

import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools")]

import experiment as experiments  # noqa: E402  (the path is set above)
import table  # noqa: E402

from engine.errors import UserError  # noqa: E402


def differences(experiment, reference):
    """network -> metric -> its differences from the reference, seed by seed.

    Raises:
        UserError: the reference has no result, or a network shares fewer than two seeds with it.
    """
    lines = experiments.read_lines(experiment.results)
    found = {
        name: experiments.final_lines(experiment, name, lines) for name in dict.fromkeys(n["network"] for n in lines)
    }
    of_seed = {name: {line["seed"]: line["test"] for line in final} for name, final in found.items() if final}
    if reference not in of_seed:
        raise UserError(f"--than: {experiment.results} has no result of {reference!r}. It has: {', '.join(of_seed)}.")
    made = {}
    for name in (name for name in of_seed if name != reference):
        seeds = [seed for seed in of_seed[reference] if seed in of_seed[name]]
        if len(seeds) < 2:
            raise UserError(f"{experiment.results}: {name} and {reference} share {len(seeds)} seeds; two are needed.")
        made[name] = {
            metric: [of_seed[name][seed][metric] - of_seed[reference][seed][metric] for seed in seeds]
            for metric in experiment.report
        }
    return made


def corrected(samples):
    """p-values of samples of differences: each sample's by a t-test, corrected for their number."""
    from scipy import stats

    raw = [1.0 if not any(of_one) else stats.ttest_1samp(of_one, 0.0).pvalue for of_one in samples]
    return stats.false_discovery_control(raw).tolist()


def comparison(experiment, reference):
    """The lines of the table, in markdown.

    Raises:
        UserError: as of ``differences``; or there is nothing to compare.
    """
    made = differences(experiment, reference)
    if not made:
        raise UserError(f"{experiment.results}: there is no other network than {reference}.")
    p_values = iter(corrected([sample for of_network in made.values() for sample in of_network.values()]))
    rows = [[f"against {reference}", *experiment.report], ["---"] * (1 + len(experiment.report))]
    for name, of_metric in made.items():
        cells = (f"{statistics.fmean(sample):+.5f} (p {_shown(next(p_values))})" for sample in of_metric.values())
        rows.append([name, *cells])
    return table.markdown(rows)


def _shown(p_value):
    return f"{p_value:.3f}" if p_value >= 0.0005 else "< 0.001"


def main(args):
    try:
        lines = comparison(experiments.read(args.experiment), args.than)
    except ImportError as error:
        raise UserError(f"{error}. Run: pip install {error.name}") from error
    print("\n".join(lines))


if __name__ == "__main__":
    than = {"required": True, "metavar": "NETWORK", "help": "the network to compare the others with"}
    experiments.command_line(__doc__, main, than=than)
