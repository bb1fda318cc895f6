"""How mkdocstrings reads this project's docstrings: prose, with one `name: text` for each argument worth a word.

As plain Markdown those lines would run together. Where such a name is a parameter, they become an `Args:` section.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

NAMED = re.compile(r"(\w+): (.+)")


class NamedArguments(griffe.Extension):
    """Applies `with_sections` to every function and class, and `hide_members` to every class."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by griffe once a package is read, when the constructors of dataclasses are known."""
        for node in functions_and_classes(pkg):
            if node.docstring:
                names = {parameter.name for parameter in node.parameters}
                node.docstring.value = with_sections(node.docstring.value, names)
            if node.is_class:
                hide_members(node)


def functions_and_classes(node: griffe.Object) -> Iterator[griffe.Object]:
    """All that are defined in a module or class, at any depth; names imported from elsewhere are left out."""
    for member in node.members.values():
        if member.is_alias:
            continue
        if member.is_function or member.is_class:
            yield member
        if member.is_module or member.is_class:
            yield from functions_and_classes(member)


def with_sections(text: str, parameters: set[str]) -> str:
    """Docstring in which the `parameter: text` lines are an `Args:` section behind the prose.

    text: the docstring, without common indentation.
    parameters: names that count. An argument's text ends at the next argument or at a blank line.
    """
    prose, arguments = [], []
    current = None  # lines of the argument that is being read
    for line in text.splitlines():
        found = NAMED.fullmatch(line)
        if found and found[1] in parameters:
            current = [f"    {line}"]
            arguments.append(current)
        elif current is not None and line.strip():
            current.append(f"        {line.strip()}")
        else:
            current = None
            prose.append(line)
    if not arguments:
        return text
    return "\n".join([*prose, "", "Args:", *(line for lines in arguments for line in lines)])


def hide_members(node: griffe.Class) -> None:
    """Leaves out what methods assign, fields that the docstring explains as arguments, and __post_init__."""
    explained = set(re.findall(r"^ +(\w+): ", node.docstring.value, re.MULTILINE)) if node.docstring else set()
    for name, member in node.members.items():
        if member.is_alias or member.docstring:
            continue
        assigned = member.is_attribute and member.value is not None and "class-attribute" not in member.labels
        if assigned or name in explained or name == "__post_init__":
            member.public = False
