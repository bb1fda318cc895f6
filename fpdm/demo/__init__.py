"""A page in the browser that samples when a dial is turned (scripts/demo.py, docs/demo.md)."""
