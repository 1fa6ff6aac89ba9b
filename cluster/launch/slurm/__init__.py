"""What a job of Slurm is made of: its options, its script, and what runs in it."""
