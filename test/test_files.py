"""Files that take the place of others whole, and what is never replaced: links, pipes and devices."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
from PIL import Image

from keypoint_detection.cli import main
from keypoint_detection.errors import InputError
from keypoint_detection.files import prepare_file, refuse_overwriting, replaced, unfinished, write_atomic

LABELS = '{"coordinates": "pixel", "dataset": [{"image_path": "a.png", "corner": [[1, 2]]}]}'


def read_fifo(path):
    """Starts to read a pipe to its end; call what is returned for the bytes."""
    found = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()

    def result():
        thread.join(30)
        return found[0]

    return result


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(LABELS)
    return tmp_path / "data.json"


def convert(data, output):
    return main(["convert", "--json_dataset_path", str(data), "--output", str(output), "--to", "native"])


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(fifo)
    for path in (fifo, link):
        result = read_fifo(fifo)
        write_atomic(path, "text")
        assert result() == b"text"
        assert fifo.is_fifo()
    assert link.is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe"]


def test_convert_writes_into_a_pipe(data, tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    result = read_fifo(fifo)
    assert convert(data, fifo) == 0
    assert b"a.png" in result()
    assert fifo.is_fifo()


def test_convert_replaces_what_a_link_leads_to(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "out.json", tmp_path / "link.json"
    link.symlink_to(target)
    for before in (None, "old"):  # a link to nothing, and one to a file
        if before:
            target.write_text(before)
        assert convert(data, link) == 0
        assert link.is_symlink()
        assert "a.png" in target.read_text()
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["out.json"]


@pytest.mark.parametrize(("stream", "descriptor"), [("stdout", 1), ("stderr", 2)])
def test_the_own_output_is_written_into_behind_what_is_there(data, tmp_path, stream, descriptor):
    """As with `>>`: the shell's file is neither replaced nor overwritten by the line that follows."""
    link = tmp_path / "own"  # as /dev/stdout is one, which no test may put at risk
    link.symlink_to(f"/dev/fd/{descriptor}")
    log = tmp_path / "log"
    log.write_text("before\n")
    command = [sys.executable, "-m", "keypoint_detection.cli", "convert", "--json_dataset_path", str(data)]
    with log.open("ab") as file:
        done = subprocess.run(
            [*command, "--output", str(link), "--to", "native"],
            check=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: file},
        )
    lines = log.read_text().splitlines()
    assert lines[:2] == ["before", '{"dataset": [']
    said = lines[-1] if stream == "stdout" else done.stdout.decode()
    assert said.startswith(f"{link}: 1 image")
    assert link.is_symlink()


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with replaced(path, "w") as file:
            file.write("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with replaced(path):
            raise OSError(errno.ENOSPC, "No space left on device")  # without a name, as the system's own

    with pytest.raises(OSError, match="No space") as caught:
        fail()
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_all_of_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, path.read_text())))
    write_atomic(path, "newer")
    assert seen == [(5, "old")]
    assert path.read_text() == "newer"


def test_a_link_that_leads_to_itself_is_one_line(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(InputError, match=r"--output .*link: cannot be written there"):
        prepare_file(link, "--output")
    with pytest.raises(OSError, match="link"):
        write_atomic(link, "text")
    assert link.is_symlink()


def test_a_command_refuses_a_link_that_leads_to_itself(data, tmp_path, capsys):
    link = tmp_path / "link"
    link.symlink_to(link)
    assert convert(data, link) == 2
    assert capsys.readouterr().err.startswith(f"error: --output {link}: cannot be written there")


def test_a_pipe_needs_no_room_in_its_folder(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    prepare_file(fifo, "--output")
    assert unfinished(fifo, "a").parent != tmp_path
    assert unfinished(tmp_path / "file", "a") == tmp_path / "file"


def test_text_that_is_no_utf8_is_written_as_json_escapes_it(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_atomic(tmp_path / "a.json", json.dumps([name, "é"], ensure_ascii=False))
    with replaced(tmp_path / "b.json", "w") as file:
        file.write(json.dumps([name, "é"], ensure_ascii=False))
    for path in (tmp_path / "a.json", tmp_path / "b.json"):
        assert path.read_bytes() == b'["caf\\udce9.png", "\xc3\xa9"]'
        assert json.loads(path.read_bytes()) == [name, "é"]


def test_what_is_read_is_known_by_any_of_its_names(tmp_path):
    source, link, loop = (tmp_path / name for name in ("image.png", "link.json", "loop"))
    source.touch()
    (tmp_path / "other.png").touch()
    link.symlink_to(source)
    loop.symlink_to(loop)
    missing = tmp_path / "missing.png"
    for output in (source, link, tmp_path / "." / "image.png"):
        with pytest.raises(InputError, match="would overwrite an input file, expected another name"):
            refuse_overwriting(output, [missing, loop, source])
    refuse_overwriting(tmp_path / "other.png", [missing, loop, source])


def test_where_nothing_is_there_yet_none_of_a_million_images_is_looked_at(tmp_path):
    looked_at = []
    refuse_overwriting(tmp_path / "new.json", map(looked_at.append, ["image.png"]))
    assert not looked_at
