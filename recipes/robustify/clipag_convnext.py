"""CLIPAG's ablation: ConvNeXt."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("clipag-vit-b32", start="convnext_base_w:laion2b_s13b_b82k", name="clipag-convnext", channels_last=True)
def recipe() -> None:
    """CLIPAG's ablation of the architecture: ConvNeXt-Base (App. C), which painted over-saturated colours.

      robustclip robustify clipag-convnext --sbu 'sbu/{00000..00099}.tar' --cc3m ... --cc12m ... --laion ...
      robustclip robustify clipag-convnext --data 'pairs/{00000..00099}.tar' --data captions.csv=2.0

    This tower sees 256x256 pixels, so eps 1.5 is a smaller change of each (RMS 0.86/255 instead of 0.99). Which
    ConvNeXt the paper took is not in its text; this one is ours.

    Everything else, and what is ours in it, is clipag-vit-b32's.
    """
