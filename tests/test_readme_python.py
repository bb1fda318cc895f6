"""The Python in README runs."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block.replace("FPDM-XL/2", "FPDM-XS/2"), {})  # the same at a size that CI holds
    assert "torch.Size([2, 8, 32, 32]) torch.Size([2, 256, 128])" in capsys.readouterr().out
