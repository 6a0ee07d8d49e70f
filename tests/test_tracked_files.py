"""What is committed: text, and little of it. Anything binary or large stands on a list, with a reason."""

import subprocess
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1_000_000  # bytes
LISTED = {  # pattern -> why it may be binary, or large
    "docs/images/*.png": "pictures of the documentation",
    "tests/data/deb5953/files.tar.xz": "what an earlier build wrote, and later ones must open",
}


def tracked_files() -> list[Path]:
    """Every file that git has, links left out."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def is_text(content: bytes) -> bool:
    """Whether it is UTF-8 without a NUL, as git sees text."""
    try:
        return "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        return False


def refused(files: Iterable[Path], root: Path) -> list[str]:
    """The files that are binary or too large, and on no list."""
    found = []
    for path in files:
        name = path.relative_to(root).as_posix()
        if any(fnmatch(name, pattern) for pattern in LISTED):
            continue
        content = path.read_bytes()
        if len(content) > LARGEST:
            found.append(f"{name}: {len(content)} bytes")
        elif not is_text(content):
            found.append(f"{name}: binary")
    return found


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="run it in a clone: it asks git what is tracked")
def test_nothing_binary_or_large_is_tracked() -> None:
    assert refused(tracked_files(), ROOT) == [], "take it out, or add it to LISTED with a reason"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="run it in a clone: it asks git what is tracked")
def test_the_list_is_in_use() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in tracked_files()]
    assert len(names) > 200
    assert [pattern for pattern in LISTED if not any(fnmatch(name, pattern) for name in names)] == []


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    contents = {
        "weights.safetensors": b"\x08\0\0\0\0\0\0\0{}",
        "model.bin": b"\xff\xfe\x80",
        "rows.csv": b"a,b\n" * 250_001,
        "picture.png": b"\x89PNG\r\n\x1a\n\0",
        "docs/images/picture.png": b"\x89PNG\r\n\x1a\n\0",
        "page.md": "Sätze, π and 字".encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert refused([tmp_path / name for name in contents], tmp_path) == [
        "weights.safetensors: binary",
        "model.bin: binary",
        "rows.csv: 1000004 bytes",
        "picture.png: binary",
    ]
