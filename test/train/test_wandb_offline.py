"""The reader of wandb's files, against files that are written here byte by byte."""

import json
import struct
import zlib

import pytest
from wandb.proto.wandb_internal_pb2 import Record
from wandb_offline import read_run

BLOCK = 32768


def history_record(step, text=""):
    record = Record()
    for key, value in (("_step", step), ("text", text)):
        item = record.history.item.add()
        item.key, item.value_json = key, json.dumps(value)
    return record.SerializeToString()


def chunk(kind, data):
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data


def write(path, *chunks):
    path.write_bytes(b":W&B\xe7\xde\x02" + b"".join(chunks))
    return path


def test_rows_nested_keys_and_exit_code_are_read(tmp_path):
    record = Record()
    for keys, value in ((["outer", "inner"], 1), (["outer", "other"], None)):
        item = record.history.item.add()
        item.nested_key.extend(keys)
        item.value_json = json.dumps(value)
    last = Record()
    last.exit.exit_code = 3
    run = read_run(
        write(tmp_path / "run-a.wandb", chunk(1, record.SerializeToString()), chunk(1, last.SerializeToString()))
    )
    assert run.history == [{"outer": {"inner": 1, "other": None}}]
    assert (run.exit_code, run.complete) == (3, True)


def test_record_that_is_split_over_blocks_is_joined(tmp_path):
    data = history_record(0, "x" * 70_000)
    first, second = BLOCK - 7 - 7, 2 * BLOCK - 7 - 7 - 7
    parts = [chunk(2, data[:first]), chunk(3, data[first:second]), chunk(4, data[second:]), chunk(1, history_record(1))]
    run = read_run(write(tmp_path / "run-a.wandb", *parts))
    assert [row["_step"] for row in run.history] == [0, 1]
    assert run.history[0]["text"] == "x" * 70_000
    assert run.complete


@pytest.mark.parametrize("left", range(1, 7))
def test_end_of_a_block_that_holds_no_chunk_is_skipped(tmp_path, left):
    overhead = len(history_record(0, "x" * 30_000)) - 30_000
    filler = chunk(1, history_record(0, "x" * (BLOCK - 7 - 7 - left - overhead)))
    assert 7 + len(filler) + left == BLOCK
    run = read_run(write(tmp_path / "run-a.wandb", filler, bytes(left), chunk(1, history_record(1))))
    assert [row["_step"] for row in run.history] == [0, 1]


@pytest.mark.parametrize("missing", [1, 20])
def test_torn_tail_keeps_what_is_before_it(tmp_path, missing):
    path = write(tmp_path / "run-a.wandb", chunk(1, history_record(0)), chunk(1, history_record(1)))
    path.write_bytes(path.read_bytes()[:-missing])
    run = read_run(path)
    assert [row["_step"] for row in run.history] == [0]
    assert not run.complete


def test_damage_is_an_error(tmp_path):
    path = write(tmp_path / "run-a.wandb", chunk(1, history_record(0)), chunk(1, history_record(1)))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum of the chunk at byte 7"):
        read_run(path)
    path.write_bytes(b"no wandb file")
    with pytest.raises(ValueError, match="no wandb file"):
        read_run(path)
