"""CLIPAG's ablation: the L-inf threat model."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("clipag-vit-b32", name="clipag-linf", norm="linf", eps=2 / 255)
def recipe() -> None:
    """CLIPAG's ablation of the threat model: L-inf (App. C), similar but less pleasing.

      robustclip robustify clipag-linf --sbu 'sbu/{00000..00099}.tar' --cc3m ... --cc12m ... --laion ...
      robustclip robustify clipag-linf --data 'pairs/{00000..00099}.tar' --data captions.csv=2.0

    The paper does not state its eps; 2/255 is ours, after FARE and TeCoA.

    All other settings are clipag-vit-b32's.
    """
