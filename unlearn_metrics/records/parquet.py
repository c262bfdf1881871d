"""Parquet files from anyone: how much they would unfold to is checked before they are read."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unlearn_metrics.errors import InputError, first_line

# what a file may unfold to at least; a larger file may unfold to so many per byte of its own
LIMITS = {"rows": (200_000, 1), "values": (5_000_000, 16), "bytes": (1 << 26, 100)}
MAX_FOOTER = 1 << 22
STRING = pa.dictionary(pa.int32(), pa.string())


def read(path: Path, columns: Mapping[str, pa.DataType], needed: Iterable[str]) -> pa.Table:
    """The table in a file. Strings stay in dictionaries (STRING), so that a small file can't unfold to a huge table.

    columns: the types of all columns that there may be; needed: those that there must be.
    InputError for another column or type, for a column that comes twice, and for what is no Parquet file or unfolds
    beyond LIMITS.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise InputError(f"{path} is not there, or is no file")
        _check_size(path)
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow, columns, needed)
            strings = [name for name in file.schema_arrow.names if columns[name] == STRING]
        with pq.ParquetFile(path, read_dictionary=strings) as file:
            table = file.read().unify_dictionaries().combine_chunks()
        table.validate(full=True)
        return table
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)[:200]}") from None


def _check_columns(path: Path, schema: pa.Schema, columns: Mapping[str, pa.DataType], needed: Iterable[str]) -> None:
    for name in needed:
        if name not in schema.names:
            raise InputError(f"{path} has no column '{name}'")
    for field in schema:
        wanted = columns.get(field.name)
        if field.type != wanted and not (wanted == STRING and field.type == pa.string()):
            raise InputError(f"{path}: column '{field.name[:80]}' of type {str(field.type)[:80]} does not belong there")
    if len({*schema.names}) < len(schema.names):
        raise InputError(f"{path} has a column twice")


def _check_size(path: Path) -> None:
    """Refuse what would unfold to far more than the file could honestly hold."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > min(size - 12, MAX_FOOTER):
            raise InputError(f"{path} is no Parquet file")
        file.seek(size - 8 - length)
        footer = file.read(length)
    try:
        # FileMetaData.row_groups; RowGroup.columns, .num_rows; ColumnChunk.meta_data
        groups = [{1: [], 3: 0} | group for group in _struct(footer, 0)[0].get(4, [])]
        metas = [[column.get(3, {}) for column in group[1]] for group in groups]
        # ColumnMetaData.num_values, .total_uncompressed_size
        counts = {
            "rows": sum(group[3] for group in groups),
            "values": max(
                map(sum, zip(*([m.get(5, 0) for m in columns] for columns in metas), strict=True)), default=0
            ),
            "bytes": sum(m.get(6, 0) for columns in metas for m in columns),
        }
    except (IndexError, ValueError, TypeError, AttributeError, RecursionError, struct.error):
        raise InputError(f"{path} is no Parquet file: its footer is broken") from None
    for what, (least, per_byte) in LIMITS.items():
        if not 0 <= counts[what] <= max(least, per_byte * size):
            raise InputError(f"{path} would unfold from {size:,} bytes to {counts[what]:,} {what}: refused")


# --- Thrift's compact protocol, as far as a footer needs it. pyarrow reads the same, but its accessors of a column
# let the C++ library's exceptions through, and a broken footer then ends the process.


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """(field id -> value, where it ends)."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        kind, delta = data[at] & 15, data[at] >> 4
        at += 1
        if delta:
            number += delta
        else:
            number, at = _value(data, at, 4)
        if kind in (1, 2):  # a boolean is its own type
            fields[number] = kind == 1
        else:
            fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):  # a boolean in a list, a byte
        return data[at], at + 1
    if kind in (4, 5, 6):
        value, at = _varint(data, at)
        return value >> 1 ^ -(value & 1), at
    if kind == 7:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == 8:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError("a text is too long")
        return data[at : at + length], at + length
    if kind in (9, 10):
        size, kind, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _varint(data, at)
        items = []
        for _ in range(size):
            item, at = _value(data, at, kind)
            items.append(item)
        return items, at
    if kind == 12:
        return _struct(data, at)
    raise ValueError("a type is unknown")  # maps: a footer has none
