"""Measurements of cost on this machine. Each question has its cases and its table (scripts/benchmark.py)."""
