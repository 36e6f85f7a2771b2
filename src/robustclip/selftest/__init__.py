"""Checks of this machine's devices and dtypes against float64 on the CPU."""
