#!/bin/bash
# robustclip plan clipag-vit-b32 --gpu h100 --count 16 --samples 100000000 --launch torchrun --sbu 'sbu/{00000..00099}.tar' --cc3m 'cc3m/{00000..00331}.tar' --cc12m 'cc12m/{00000..01242}.tar' --laion 'laion/{00000..00999}.tar' --batch-size 4096
# 24,415 steps of 4,096, 256 on each of 16 x h100: about 59.6 minutes, 7 of 80 GB (fits)
# Run it on each machine: bash SCRIPT ADDRESS_OF_ONE_OF_THEM
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else restarted processes may find the addresses of dead ones
exec torchrun \
    --nnodes 2 --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "${1:?address of one of the machines}:29500" \
    -m -- robustclip robustify clipag-vit-b32 \
    --sbu 'sbu/{00000..00099}.tar' \
    --cc3m 'cc3m/{00000..00331}.tar' \
    --cc12m 'cc12m/{00000..01242}.tar' \
    --laion 'laion/{00000..00999}.tar' \
    --steps 24415 \
    --batch-size 4096 \
    --resume latest \
    --out runs/clipag-vit-b32
