"""T2I-CompBench's evaluation (Huang et al. 2023, arXiv:2307.06350) with models of transformers, or embedded ones."""
