"""The strategies that `model.sampler` composes, one file each; every choice they draw is a function
of (seed, sample index)."""
