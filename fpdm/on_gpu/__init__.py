"""Everything that a GPU is wanted for, by one command that is given again until it is done (scripts/on_gpu.py)."""
