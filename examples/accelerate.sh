#!/bin/bash
# robustclip plan clipag-vit-b32 --gpu h100 --count 8 --samples 5100000 --launch accelerate --sbu 'sbu/{00000..00099}.tar' --cc3m 'cc3m/{00000..00331}.tar' --cc12m 'cc12m/{00000..01242}.tar' --laion 'laion/{00000..00999}.tar'
# 19,922 steps of 256, 32 on each of 8 x h100: about 5.92 minutes, 3 of 80 GB (fits)
exec accelerate launch \
    --multi_gpu --num_processes 8 --mixed_precision no --dynamo_backend no --num_machines 1 \
    -m robustclip robustify clipag-vit-b32 \
    --sbu 'sbu/{00000..00099}.tar' \
    --cc3m 'cc3m/{00000..00331}.tar' \
    --cc12m 'cc12m/{00000..01242}.tar' \
    --laion 'laion/{00000..00999}.tar' \
    --steps 19922 \
    --resume latest \
    --out runs/clipag-vit-b32
