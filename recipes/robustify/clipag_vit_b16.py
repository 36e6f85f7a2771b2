"""CLIPAG's ablation: ViT-B/16."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("clipag-vit-b32", start="ViT-B-16:laion2b_s34b_b88k", name="clipag-vit-b16")
def recipe() -> None:
    """CLIPAG's ablation of the architecture: ViT-B/16 (App. C), whose pictures had artefacts.

      robustclip robustify clipag-vit-b16 --sbu 'sbu/{00000..00099}.tar' --cc3m ... --cc12m ... --laion ...
      robustclip robustify clipag-vit-b16 --data 'pairs/{00000..00099}.tar' --data captions.csv=2.0

    Four times the tokens of clipag-vit-b32, and about four times its cost. The paper does not state
    its initial weights; LAION-2B's are ours.

    All other settings are clipag-vit-b32's.
    """
