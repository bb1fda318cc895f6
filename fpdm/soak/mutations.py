"""Changes of real files: a field of a JSON or YAML file, a cell of a text, some bytes."""

import json
from pathlib import Path
from random import Random

import yaml

# What a field may hold instead: other kinds, and numbers at the ends of their ranges.
VALUES = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "a", "x" * 5000,
          "../../etc/passwd", "/dev/zero", "\x00", [], [1], [None], [[]], {}, {"a": 1}, [-1] * 3, [0.5] * 4, ["a"] * 3,
          list(range(3)))  # fmt: skip


def json_field(path: Path, draw: Random) -> str:
    """One field changed, removed, added or renamed by one bit; or some bytes of the file."""
    if draw.random() < 0.2:
        return some_bytes(path, draw)
    content = json.loads(path.read_text())
    did = _change(content, draw)
    path.write_text(json.dumps(content))
    return did


def yaml_field(path: Path, draw: Random) -> str:
    """The same for a YAML file."""
    if draw.random() < 0.2:
        return some_bytes(path, draw)
    content = yaml.safe_load(path.read_text())
    did = _change(content, draw)
    path.write_text(yaml.safe_dump(content))
    return did


def _change(content: dict, draw: Random) -> str:
    """Change a field, of a part of a part with some probability."""
    inner = [name for name, value in content.items() if isinstance(value, dict) and value]
    if inner and draw.random() < 0.6:
        name = draw.choice(inner)
        return f"{name}.{_change(content[name], draw)}"
    name = draw.choice(list(content))
    way = draw.choice(("value", "value", "value", "remove", "rename", "add", "element"))
    if way == "remove":
        del content[name]
    elif way == "rename":
        at = draw.randrange(len(name))
        content[name[:at] + chr(ord(name[at]) ^ 1 << draw.randrange(5)) + name[at + 1 :]] = content.pop(name)
    elif way == "add":
        content[f"{name}x"] = draw.choice(VALUES)
    elif way == "element" and isinstance(content[name], list) and content[name]:
        content[name][draw.randrange(len(content[name]))] = draw.choice(VALUES)
    else:
        content[name] = draw.choice(VALUES)
    return f"{name}: {way} {str(content.get(name))[:60]}"


def some_bytes(path: Path, draw: Random) -> str:
    """Bits flipped, bytes cut off, put in, overwritten, or nothing left."""
    content = bytearray(path.read_bytes())
    way = draw.choice(("flip", "flip", "cut", "insert", "overwrite", "empty", "random", "repeat"))
    at = draw.randrange(max(len(content), 1))
    if way == "flip":
        for _ in range(draw.choice((1, 1, 8))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif way == "cut":
        del content[at:]
    elif way == "insert":
        content[at:at] = draw.randbytes(draw.choice((1, 100)))
    elif way == "overwrite":
        content[at : at + 64] = draw.choice((b"\x00", b"\xff")) * 64
    elif way == "repeat":
        content *= 2
    else:
        content = bytearray(draw.randbytes(0 if way == "empty" else draw.choice((1, 100, 5000))))
    path.write_bytes(content)
    return f"bytes, {way} at {at}"


def lines(path: Path, draw: Random) -> str:
    """One cell of a text of lines and cells changed, a line removed, repeated or moved; or some bytes."""
    if draw.random() < 0.3:
        return some_bytes(path, draw)
    rows = path.read_text().splitlines()
    at, way = draw.randrange(len(rows)), draw.choice(("cell", "cell", "remove", "repeat", "empty"))
    if way == "cell":
        mark = "," if "," in rows[at] else " "
        cells = rows[at].split(mark)
        cells[draw.randrange(len(cells))] = str(draw.choice(VALUES))[:20].replace("\x00", "")
        rows[at] = mark.join(cells)
    elif way == "remove":
        del rows[at]
    elif way == "repeat":
        rows.insert(at, rows[at])
    else:
        rows[at] = ""
    path.write_text("\n".join([*rows, ""]))
    return f"line {at}, {way}"
