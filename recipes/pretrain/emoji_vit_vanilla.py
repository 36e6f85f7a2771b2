"""Train the embedded CLIP with a ViT on clean emoji, as `emoji-vanilla` is trained."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("pretrain/emoji-vanilla", name="emoji-vit-vanilla", tower="vit_mini_patch8", steps=2400, lr=1e-3, warmup=200)
def recipe() -> None:
    """Train the small ViT of the embedded world on clean emoji.

    robustclip robustify pretrain/emoji-vit-vanilla

    About half an hour on two CPU cores. The tower is open_clip's own ViT (4 blocks of width 128, 8x8 patches of 64x64
    pixels, the embedding read from the CLS token, as in CLIP), so that what is found of maps on the CNN can be looked
    for on a ViT. The control of emoji-vit-robust is this recipe again, as long as that took:

      --name emoji-vit-vanilla-long --start emoji-vit-vanilla --steps 2200 --lr 5e-4

    All values are ours.
    """
