"""The commands that an installed package brings: each module parses its options, calls the package and ends.

`fpdm-train` is `fpdm.commands.train.run`, and so is scripts/train.py in a clone.
"""
