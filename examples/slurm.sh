#!/bin/bash
# robustclip plan clipag-vit-b32 --gpu a100-80gb --count 16 --samples 100000000 --per-node 4 --launch slurm --sbu 'sbu/{00000..00099}.tar' --cc3m 'cc3m/{00000..00331}.tar' --cc12m 'cc12m/{00000..01242}.tar' --laion 'laion/{00000..00999}.tar' --batch-size 4096 --workers 8
# 24,415 steps of 4,096, 256 on each of 16 x a100-80gb: about 3.1 hours, 7 of 80 GB (fits)
#SBATCH --job-name=clipag-vit-b32 --time=6:00:00
#SBATCH --nodes=4 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=9
#SBATCH --signal=TERM@180 --requeue --open-mode=append
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# One task a GPU. When one has ended, the others get five minutes to write what they have.
srun --kill-on-bad-exit=0 --wait=300 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' bash \
    robustclip robustify clipag-vit-b32 \
    --sbu 'sbu/{00000..00099}.tar' \
    --cc3m 'cc3m/{00000..00331}.tar' \
    --cc12m 'cc12m/{00000..01242}.tar' \
    --laion 'laion/{00000..00999}.tar' \
    --steps 24415 \
    --batch-size 4096 \
    --workers 8 \
    --resume latest \
    --out runs/clipag-vit-b32
code=$?
case $code in
    0 | 1 | 2) exit $code ;;  # finished, failed, or called wrongly: starting again would not help
    *) scontrol requeue "$SLURM_JOB_ID" ;;  # stopped by SIGTERM before the time limit, or killed
esac
