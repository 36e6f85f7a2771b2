"""Frozen judges: images in [0,1] and texts in, embeddings out."""
