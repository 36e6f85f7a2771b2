"""Text-to-image synthesis by optimisation: prompts, guides, the loop over canvases, DOODL and Referee-Can-Play."""
