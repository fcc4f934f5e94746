#!/bin/bash
# A distillation on two machines with eight GPUs each. Adapt the lines of #SBATCH and the command at the end.
#SBATCH --job-name=mmard
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
# The last line asks for a signal two minutes before the end: the run is saved, and the same job submitted again resumes it.

set -euo pipefail
run=runs/rslad+mmard-resnet18
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

if [ -e "$run/state.safetensors" ]; then
    what=(--resume "$run")
else
    what=(--teacher runs/teacher --student resnet18 --data cifar10 --data-dir data --eps 8/255
          --method rslad+mmard --batch-size 1024 --out "$run")
fi

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    -m mmard distill "${what[@]}"
