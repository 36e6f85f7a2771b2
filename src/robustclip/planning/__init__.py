"""Cost estimates of a training run before it starts: FLOPs, memory, hours, money."""
