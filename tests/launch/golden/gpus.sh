#!/bin/bash
#SBATCH --job-name=try
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --partition=h100
#SBATCH --account=team
#SBATCH --time=2-00:00:00
#SBATCH --signal=TERM@120
#SBATCH --chdir=/shared/work
#SBATCH --output=/shared/runs/try/slurm.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
trap '' TERM  # It is for the training, which saves; this shell has to outlive it.
trap 'cancelled=1' USR1
export PYTHONPATH=/seq2see${PYTHONPATH:+:$PYTHONPATH} JAX_PLATFORMS=cuda,cpu

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$first" >/dev/null; then
  echo "launch.submit: the name of the first machine, $first, does not resolve here: it has to be in DNS." >&2
  exit 1
fi

failures=0
while true; do
  srun --wait=120 /env/bin/python -m launch.train --config=llama3_8b --mesh.data=-1 '--data.source=text:a b/*' --run=/shared/runs/try
  status=$?
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
  if [ -n "$cancelled" ] || [ "$state" != RUNNING ] || [ $status = 0 ] || [ $status = 2 ]; then
    exit $status
  elif [ $status = 75 ]; then
    echo "launch.submit: saved; queued again" >&2
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    exit $status
  fi
  failures=$((failures + 1))
  if [ $failures -gt 10 ]; then
    exit $status
  fi
  echo "launch.submit: exit status $status, failed $failures of at most 10 times; starting again" >&2
done
