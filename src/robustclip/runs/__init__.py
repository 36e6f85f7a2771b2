"""Run folders and what lies below them: files, processes, devices, randomness."""
