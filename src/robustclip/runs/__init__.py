"""Run folders, files, processes, devices and random generators."""
