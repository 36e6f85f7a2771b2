"""Adversarial fine-tuning of CLIP: attack objectives, training losses, the trainer, checkpoints and export."""
