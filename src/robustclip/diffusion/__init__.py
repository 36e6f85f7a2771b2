"""Generators of diffusers, the optional library that this room alone imports: pip install 'robustclip[synthesis]'."""
