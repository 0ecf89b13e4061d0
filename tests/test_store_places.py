"""Places outside a store's folder are remembered, also after a line that was cut short."""

from __future__ import annotations

import resource

import pytest

from matchwright.engine.errors import StoreError
from matchwright.engine.store import places


def test_a_place_after_a_line_that_was_cut_short_is_remembered(tmp_path):
    places.note(tmp_path, "backup", "/backups/monday.tar")
    path = tmp_path / places.FILE
    path.write_bytes(path.read_bytes() + b'{"what": "backup", "whe')
    places.note(tmp_path, "backup", "/backups/tuesday.tar")
    places.note(tmp_path, "runs", "memory://runs")
    assert places.known(tmp_path, "backup") == ["/backups/monday.tar", "/backups/tuesday.tar"]
    assert places.known(tmp_path, "runs") == ["memory://runs"]


@pytest.mark.parametrize("room", [0, 10])
def test_a_place_that_found_no_room_is_noted_when_there_is(tmp_path, room):
    places.note(tmp_path, "runs", "memory://first")
    path = tmp_path / places.FILE
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        with pytest.raises(StoreError, match="cannot remember"):
            places.note(tmp_path, "runs", "memory://second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert places.known(tmp_path, "runs") == ["memory://first"]
    places.note(tmp_path, "runs", "memory://second")
    assert places.known(tmp_path, "runs") == ["memory://first", "memory://second"]


@pytest.mark.parametrize("line", [b"\xff\n", b"[" * 100_000 + b"\n", b"7\n", b"\n"])
def test_a_line_of_anything_hides_no_other(tmp_path, line):
    places.note(tmp_path, "runs", "memory://first")
    with (tmp_path / places.FILE).open("ab") as file:
        file.write(line)
    places.note(tmp_path, "runs", "memory://second")
    assert places.known(tmp_path, "runs") == ["memory://first", "memory://second"]
