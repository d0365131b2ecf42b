#!/bin/bash
#SBATCH --job-name=dselect-k
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# One task a node is a launcher; it starts the processes. README.md beside this file says how to submit the job.

processes=2  # on each node
tries=5      # in one allocation

# The launcher knows the master's machine by its IP address alone, never by a host name without a dot.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$first" | awk 'NR == 1 { print $1 }')
case $address in
  '' | 127.*)
    echo "error: $first must have an IPv4 address that other nodes can reach, but has '$address' here" >&2
    exit 2
    ;;
esac
export MASTER="$address:$((20000 + SLURM_JOB_ID % 10000))" PROCESSES="$processes"

# --host must be the very text before the port of --master on the first node: it starts the master there.
# shellcheck disable=SC2016  # each node expands it
launch='
host=$(getent ahostsv4 "$SLURMD_NODENAME" | awk "NR == 1 { print \$1 }")
exec python -m paddle.distributed.launch \
  --master "$MASTER" --host "$host" --nnodes "$SLURM_NNODES" --rank "$SLURM_NODEID" \
  --nproc_per_node "$PROCESSES" --log_dir "log/$SLURM_NODEID" \
  tools/trainer.py -m config.yaml -o runner.resume=auto'

# To srun itself, SIGTERM means to kill the step. From scancel the processes get it, and save after the step.
limit=
trap 'limit=near; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

for ((try = 1; try <= tries; try++)); do
  # Processes that lose another one end by themselves, with a message; --wait ends a launcher that is left alone.
  # Slurm from 22.05 on does not hand --cpus-per-task down to srun.
  srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$launch" &
  step=$!
  wait "$step"
  code=$?
  while kill -0 "$step" 2>/dev/null; do  # USR1 has ended the wait
    wait "$step"
    code=$?
  done
  [ "$code" -eq 0 ] || [ "$code" -eq 2 ] && exit "$code"  # 2: a mistake, which a retry repeats
  [ -n "$limit" ] && exec scontrol requeue "$SLURM_JOB_ID"
  echo "try $try of $tries ended with code $code" >&2
done
exit "$code"
