"""Which code a campaign tries."""

import hashlib
import subprocess

from fpdm.chain import ROOT


def state_of_code() -> tuple[str, str]:
    """The commit, with a mark if files differ from it, and a hash of all Python files of the package and scripts."""
    files = sorted([*(ROOT / "fpdm").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
    content = b"".join(path.read_bytes() for path in files)
    digest = hashlib.blake2b(content, digest_size=6).hexdigest()
    commit, changes = _git("rev-parse", "--short=10", "HEAD"), _git("status", "--porcelain", "--", "fpdm", "scripts")
    return f"{commit or 'no commit'}{f' and changes ({digest})' if changes or not commit else ''}", digest


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
