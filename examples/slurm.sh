#!/bin/bash
# A harvest and a training on 8 machines of 8 GPUs: sbatch examples/slurm.sh runs/wide
# A preempted or failed job goes on from its last shard or checkpoint: --requeue starts it again, and nothing needs to be said again.
#SBATCH --job-name=kyomei
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

RUN=${1:?the folder of the run, on a disk that all machines see}
GPUS=${SLURM_GPUS_ON_NODE:-1}
export OMP_NUM_THREADS=8 HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}
read -r HEAD < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# One torchrun a machine starts a process for each of its GPUs.
together() {
    srun --kill-on-bad-exit=1 torchrun \
        --nnodes "$SLURM_NNODES" --nproc-per-node "$GPUS" --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id "$SLURM_JOB_ID-$1" \
        -m kyomei "$@" &
    # A signal that comes before the time is up reaches every process, which saves what it did.
    local job=$!
    trap 'kill -TERM $job' TERM
    wait "$job"
}

together harvest "$RUN" --model Qwen/Qwen2.5-7B --site model.layers.14 --text hf://datasets/NAME/FILE.parquet \
    --tokens 1000000000 --dtype bfloat16 --set source.dtype=int8 --set dictionary.width=1048576 --set source.windows_per_batch=32
# Parts of the rows x parts of the latents: as many processes as there are.
together train "$RUN" --mesh "8x$((SLURM_NNODES * GPUS / 8))"

# What follows runs in one process.
srun --nodes=1 --ntasks=1 kyomei certify "$RUN"
srun --nodes=1 --ntasks=1 kyomei measure "$RUN"
srun --nodes=1 --ntasks=1 kyomei report "$RUN"
