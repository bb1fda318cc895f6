"""The command lines: each module parses, calls the package and exits."""
