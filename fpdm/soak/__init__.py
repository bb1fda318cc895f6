"""The reliability campaign (scripts/soak.py, docs/reliability.md): what users' commands do when they are killed, when a
disk is full, when input is bad, and when they run for long."""
