"""Hub ids as users write them: OWNER/NAME, or OWNER/NAME@REVISION for one state of the repository."""


def split_revision(source: str) -> tuple[str, str | None]:
    """A Hub id -> the repository, and its branch, tag or commit; None means the latest state."""
    repository, _, revision = source.partition("@")
    return repository, revision or None
