"""Post-training of language models of puzzles: rejection sampling, supervised fine-tuning, GRPO, merging."""
