"""What a training run would take, before it is started: FLOPs, memory, hours and cost."""
