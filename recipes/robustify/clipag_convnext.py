"""CLIPAG's ablation: ConvNeXt."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("clipag-vit-b32", start="convnext_base_w:laion2b_s13b_b82k", name="clipag-convnext", channels_last=True)
def recipe() -> None:
    """CLIPAG's ablation of the architecture: ConvNeXt-Base (App. C), whose pictures were over-saturated.

      robustclip robustify clipag-convnext --sbu 'sbu/{00000..00099}.tar' --cc3m ... --cc12m ... --laion ...
      robustclip robustify clipag-convnext --data 'pairs/{00000..00099}.tar' --data captions.csv=2.0

    This tower takes 256x256 pixels, so eps 1.5 is a smaller change per pixel (RMS 0.86/255 instead of 0.99). The paper
    does not name its ConvNeXt; this one is ours.

    All other settings are clipag-vit-b32's.
    """
