"""What things cost on this machine: questions, each measured and answered by a table (scripts/benchmark.py)."""
