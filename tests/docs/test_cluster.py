"""examples/cluster: each file passes its own schema or linter, and all start the same command.

There is no cluster here: of Slurm's commands there are stand-ins. Paddle's own launcher parses its command lines.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from paddle.distributed.launch.context.args_envs import parse_args

from support import ROOT

FOLDER = ROOT / "examples" / "cluster"
SLURM = FOLDER / "slurm.sh"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))
SERVICE, CLAIM, JOB = KUBERNETES
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
STAND_INS = {
    "getent": 'case $2 in node0) ip=10.0.0.10 ;; node1) ip=10.0.0.11 ;; esac; printf "$ip STREAM $2\\n$ip DGRAM\\n"',
    "python": 'printf "%s\\n" python "$@" > argv.$SLURM_NODEID',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat srun.pid)"',
    "scontrol": 'if [ "$1" = show ]; then printf "node0\\nnode1\\n"; else echo "scontrol $*" >> calls; fi',
    # ends as the file codes says, a line for each call; without a line, when it is told to
    "srun": """
        echo srun >> calls
        while [[ $1 == --* ]]; do shift; done
        for node in 0 1; do SLURM_NODEID=$node SLURMD_NODENAME=node$node "$@"; done
        code=$(sed -n "$(grep -c srun calls)p" codes)
        if [ -n "$code" ]; then exit "$code"; fi
        trap 'exit 15' TERM
        echo $$ > srun.pid
        while :; do sleep 0.05; done""",
}


def program(name):
    """The path of a linter that the extra ``test`` installs."""
    path = shutil.which(name, path=os.path.dirname(sys.executable))
    return path or pytest.skip(f"{name} is not installed: pip install '.[test]'")


def assert_accepted(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ----------------------------------------------------------------------------------- schemas and linters


def test_kubernetes_accepts_the_manifest():
    """The oldest release that the file names and the newest that the package has a schema of; no unknown field."""
    validator = pytest.importorskip("kubernetes_validate")
    oldest = re.search(r"Kubernetes (\d+\.\d+) or later", (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))[1]
    for release, document in itertools.product([oldest, validator.latest_version()], KUBERNETES):
        assert release.startswith(validator.validate(document, release, strict=True))


def test_compose_accepts_the_file():
    assert_accepted(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml")


def test_the_dockerfile_passes_hadolint():
    assert_accepted(program("hadolint"), "--no-color", FOLDER / "Dockerfile")


def test_the_script_passes_shellcheck():
    assert_accepted(program("shellcheck"), SLURM)


def test_the_script_is_bash():
    assert_accepted("bash", "-n", SLURM)


# ------------------------------------------------------------------------------------------ the script


@pytest.fixture
def slurm(tmp_path):
    """(A function that starts the script under stand-ins for Slurm's commands, the folder that they write into)."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    started = []

    def start(codes):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")
        facts = {"JOB_ID": 4242, "JOB_NODELIST": "node[0-1]", "NNODES": 2, "CPUS_PER_TASK": 8}
        facts = {f"SLURM_{name}": str(fact) for name, fact in facts.items()}
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **facts, "PATH": path}
        process = subprocess.Popen(["bash", SLURM], cwd=tmp_path, env=environment, start_new_session=True)
        started.append(process)
        return process

    yield start, tmp_path
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("codes,end", [([0], 0), ([2], 2), ([75, 143, 0], 0), ([75] * 5, 75)])
def test_the_script_tries_again_but_after_a_mistake(slurm, codes, end):
    start, folder = slurm
    assert start(codes).wait(60) == end
    assert (folder / "calls").read_text(encoding="utf-8").splitlines() == ["srun"] * len(codes)


@pytest.mark.parametrize("answer", ["exit 2", "echo 127.0.1.1 STREAM node0"])
def test_the_script_refuses_a_master_that_the_other_nodes_cannot_reach(slurm, answer):
    """Some systems give a machine's own name 127.0.1.1; the launchers would wait for ever."""
    start, folder = slurm
    (folder / "bin" / "getent").write_text(f"#!/usr/bin/env bash\n{answer}\n", encoding="utf-8")
    assert start([0]).wait(60) == 2
    assert not (folder / "calls").exists()


def test_before_its_time_is_over_the_script_has_the_processes_save_and_the_job_requeued(slurm):
    start, folder = slurm
    process, until = start([]), time.monotonic() + 60
    while not (folder / "srun.pid").is_file() or not (folder / "srun.pid").read_text(encoding="utf-8"):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    calls = (folder / "calls").read_text(encoding="utf-8").splitlines()
    assert calls == ["srun", "scancel --signal=TERM 4242", "scontrol requeue 4242"]


# ----------------------------------------------------------------------------------------- the commands


def of_slurm(start, folder):
    assert start([0]).wait(60) == 0
    return [(folder / f"argv.{node}").read_text(encoding="utf-8").splitlines() for node in (0, 1)]


def launched(command, monkeypatch):
    """The options of a command line, as Paddle's launcher reads them."""
    assert command[:3] == ["python", "-m", "paddle.distributed.launch"]
    monkeypatch.setattr(sys, "argv", command[2:])
    options, unknown = parse_args()
    assert unknown == []
    return options


@pytest.fixture
def jobs(slurm, monkeypatch):
    """Where -> the launcher's options on each of the two nodes."""
    pods = [[part.replace("$(JOB_COMPLETION_INDEX)", node) for part in CONTAINER["command"]] for node in "01"]
    commands = {
        "kubernetes": pods,
        "compose": [service["command"] for service in COMPOSE["services"].values()],
        "slurm": of_slurm(*slurm),
    }
    return {where: [launched(command, monkeypatch) for command in both] for where, both in commands.items()}


def test_the_script_starts_this_command_on_the_first_node(slurm):
    first, _ = of_slurm(*slurm)
    assert " ".join(first) == (
        "python -m paddle.distributed.launch --master 10.0.0.10:24242 --host 10.0.0.10 --nnodes 2 --rank 0 "
        "--nproc_per_node 2 --log_dir log/0 tools/trainer.py -m config.yaml -o runner.resume=auto"
    )


def test_all_start_the_same_command(jobs):
    def shared(options):
        return options.nnodes, options.nproc_per_node, options.training_script, options.training_script_args

    commands = [shared(options) for both in jobs.values() for options in both]
    assert commands == [("2", 2, "tools/trainer.py", ["-m", "config.yaml", "-o", "runner.resume=auto"])] * 6
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "--nnodes 2 --rank 0 --nproc_per_node 2" in page
    assert "tools/trainer.py -m config.yaml -o runner.resume=auto\n" in page


def test_each_node_has_its_own_rank_and_log(jobs):
    for both in jobs.values():
        assert [(options.rank, options.log_dir) for options in both] == [(0, "log/0"), (1, "log/1")]


def test_the_launcher_on_the_first_node_alone_finds_that_it_is_the_master(jobs):
    """It compares --host with --master, and passes over a --host without a dot."""
    for first, second in jobs.values():
        assert first.master == second.master
        assert first.master.split(":")[0] == first.host != second.host
        assert "." in first.host and "." in second.host


def test_the_hosts_are_names_that_kubernetes_gives(jobs):
    assert SERVICE["metadata"]["name"] == POD["subdomain"] and SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": JOB["metadata"]["name"]}
    pods = [f"{JOB['metadata']['name']}-{index}" for index in range(JOB["spec"]["completions"])]
    assert [options.host for options in jobs["kubernetes"]] == [f"{pod}.{POD['subdomain']}" for pod in pods]


def test_the_hosts_are_names_that_compose_gives(jobs):
    names = [service["networks"]["job"]["aliases"] for service in COMPOSE["services"].values()]
    assert [[options.host] for options in jobs["compose"]] == names


# ------------------------------------------------------------------------------------------- the volumes


def test_kubernetes_and_compose_share_data_and_checkpoints_and_kubernetes_does_not_retry_a_mistake():
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"]} == {CLAIM["metadata"]["name"]}
    for service in COMPOSE["services"].values():
        assert {volume.split(":")[1] for volume in service["volumes"]} == mounts == {"/app/data", "/app/output"}
        assert service["image"] == CONTAINER["image"]
    on_codes = [rule for rule in JOB["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert [rule["action"] for rule in on_codes if 2 in rule["onExitCodes"]["values"]] == ["FailJob"]
    assert {rule["onExitCodes"]["containerName"] for rule in on_codes} == {CONTAINER["name"]}


# --------------------------------------------------------------------------------------------- the image


def test_the_image_has_the_paddle_of_the_tests():
    paddle = re.search(r"^PADDLE \?= (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert f"paddlepaddle=={paddle} " in DOCKERFILE


def test_a_tool_runs_on_what_the_image_copies(tmp_path):
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in [path for pattern in sources for path in ROOT.glob(pattern)]:
            if source.is_dir():
                shutil.copytree(source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__", "build"))
            else:
                shutil.copy(source, tmp_path / target)
    options = ["runner.resume=auto", "runner.epochs=1", "runner.to_static=false", "hyper_parameters.expert_num=2"]
    command = [sys.executable, "tools/trainer.py", "-m", "config.yaml", "-o", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "0" / "manifest.json").is_file()
