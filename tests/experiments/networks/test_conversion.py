"""Models converted into a cache: once, whole or not at all, and only what they are said to be."""

import hashlib
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from bayes_lora.errors import BaseModelError
from bayes_lora.experiments.networks.conversion import cache_folder, converted

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BAYES_LORA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights.gguf"
    path.write_bytes(CONTENT)
    return path


def convert(source: Path, folder: Path) -> None:
    (folder / "config.json").write_bytes(source.read_bytes())


def convert_slowly(source: Path, folder: Path) -> None:
    with (source.parent / "conversions").open("a") as file:
        file.write("one\n")
    time.sleep(0.5)
    convert(source, folder)


def _converted_elsewhere(source: Path, of: Callable[[Path, Path], None]) -> str:
    return str(converted("tiny", source, SHA256, of))


def test_it_is_made_once_and_said(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = converted("tiny", source, SHA256, convert)
    assert folder == cache_folder() / f"tiny-{SHA256[:12]}"
    assert (folder / "config.json").read_bytes() == CONTENT
    shown = capsys.readouterr()
    assert (shown.out, shown.err.startswith("Converting tiny into ")) == ("", True)
    source.unlink()  # it is not asked for again
    assert converted("tiny", source, SHA256, convert) == folder
    assert capsys.readouterr().err == ""


def test_processes_side_by_side_convert_once(source: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        found = pool.starmap(_converted_elsewhere, [(source, convert_slowly)] * 2)
    assert len(set(found)) == 1
    assert (source.parent / "conversions").read_text() == "one\n"


def test_a_conversion_that_ends_early_leaves_nothing(source: Path) -> None:
    def fail(source: Path, folder: Path) -> None:
        convert(source, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted("tiny", source, SHA256, fail)
    assert [path.name for path in cache_folder().iterdir()] in ([], [f"tiny-{SHA256[:12]}.lock"])
    left = cache_folder() / f".tiny-{SHA256[:12]}.0123.partial"  # by a process that was killed
    left.mkdir()
    converted("tiny", source, SHA256, convert)
    assert not left.exists()


def test_another_file_is_refused(source: Path) -> None:
    source.write_bytes(b"other weights")
    with pytest.raises(BaseModelError, match=r"weights\.gguf is damaged, or of another version: its SHA-256 is"):
        converted("tiny", source, SHA256, convert)
    assert not list(cache_folder().glob("tiny-*[!k]"))


def test_a_cache_that_cannot_be_written_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYES_LORA_CACHE", str(source))  # a file
    with pytest.raises(BaseModelError, match="Set BAYES_LORA_CACHE to a folder that may be written"):
        converted("tiny", source, SHA256, convert)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAYES_LORA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bayes_lora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "bayes_lora"
