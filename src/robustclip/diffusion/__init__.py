"""Diffusion models and VQGANs in diffusers' format: pip install 'robustclip[synthesis]'."""
