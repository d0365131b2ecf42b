"""Kill training runs at random moments and resume them: python tests/stress/kill_resume.py --trials 100

Each trial kills a run of either graph (SIGKILL) and restarts it with runner.resume=auto until it ends. Its last
checkpoint must have the same bits as an uninterrupted run's. tests/engine/checkpoints/test_session.py runs two trials.
"""

import argparse
import pathlib
import sys
import tempfile

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent.parent)]

from support.resuming import trials  # noqa: E402  (the path is set above)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = trials(args.trials, args.seed, folder)
    result = "all ended in the bits of the uninterrupted run" if kills else "no kill came in time: nothing was tested"
    print(f"trials: {args.trials}, kills: {kills}; {result}")


if __name__ == "__main__":
    main()
