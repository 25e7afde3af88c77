"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from mimkit.disk import write_atomically, write_text


def test_two_processes_do_not_write_into_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is at work: whoever reads sees one of them whole."""
    path = tmp_path / "rows.f32"

    def slowly(beside: Path) -> None:
        with beside.open("wb") as file:
            file.write(b"first" * 1000)
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: -1)
                write_text(path, "second")
            assert path.read_text() == "second"
            file.write(b"first" * 1000)

    write_atomically(path, slowly)
    assert path.read_bytes() == b"first" * 2000 and [each.name for each in tmp_path.iterdir()] == ["rows.f32"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())
