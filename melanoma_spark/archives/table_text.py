"""Tables as text: encoding, delimiter and rows of cells, within limits of memory.

Whatever bytes a table consists of, only `DataError` is raised.
"""

import codecs
import csv
import io
import re
import time
from collections.abc import Container, Iterable, Iterator
from typing import BinaryIO

from melanoma_spark.errors import DataError

MAX_COLUMNS = 1000
MAX_ROW = 1 << 20  # characters of a row with all its cells
MAX_SECONDS = 600  # of processor time for a table with all that is made of its rows: some 2 GB of a usual one
LINES_BETWEEN = 1000  # looks at that time
SAMPLE = 50  # rows of a head that are looked at
CP1252_ERRORS = "melanoma_spark.cp1252"  # the name of an error handler of codecs


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are not UTF-8, in the encoding of Western Excel, wherever they stand in a table."""
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    try:
        return wrong.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return wrong.decode("latin-1"), error.end


codecs.register_error(CP1252_ERRORS, _as_cp1252)


def decode_head(head: bytes) -> tuple[str, str]:
    """The text of a table's first bytes and its encoding. Raises `DataError` if it is not text."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise DataError("is in UTF-32; save it as UTF-8")
    encoding = "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(head) > 3 and head[1::2].count(0) > 0.8 * len(head[1::2]) and not head[::2].count(0):
        encoding = "utf-16-le"
    elif len(head) > 3 and head[::2].count(0) > 0.8 * len(head[::2]) and not head[1::2].count(0):
        encoding = "utf-16-be"
    text = codecs.getincrementaldecoder(encoding)(_error_handler(encoding)).decode(head)
    return _check_text(text), encoding


def _error_handler(encoding: str) -> str:
    return CP1252_ERRORS if encoding == "utf-8-sig" else "replace"


def _check_text(text: str) -> str:
    control = re.search(r"[\x00-\x08\x0e-\x1f]", text)
    if control:
        raise DataError(f"is not text: it holds the byte 0x{ord(control[0]):02x}")
    return text


def find_delimiter(text: str, names: Container[str]) -> str:
    """The delimiter that cuts the first line into the most of these lower-case names, else into the most cells."""
    first = next((line for line in re.split(r"[\r\n]+", text) if line.strip()), "").lower()

    def count(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip().strip('"').strip() for cell in first.split(delimiter)]
        return sum(cell in names for cell in cells), len(cells)

    return max(",;\t|", key=count)


def read_lines(binary: BinaryIO, encoding: str) -> Iterator[str]:
    """The lines of a table with their ends. A line longer than a row may be comes in pieces."""
    wrapper = io.TextIOWrapper(binary, encoding=encoding, errors=_error_handler(encoding), newline="")
    try:
        for line in iter(lambda: wrapper.readline(MAX_ROW + 1), ""):
            if encoding.startswith("utf-16") and line.endswith("\ufffd"):
                raise DataError("ends in the middle of a character")
            yield line
    except UnicodeError:
        raise DataError(f"is not text in {encoding}") from None
    finally:
        if not binary.closed:
            wrapper.detach()  # else the caller's file is closed with the wrapper


def read_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The rows that are not blank.

    Raises `DataError` if a row or the table is over the limits, and at the end of a table that was cut: its last line
    has no end and, unlike all lines before it, too few cells. That line may hold half of a name.
    """
    length = 0
    ended = True
    start = time.process_time()

    def measured() -> Iterator[str]:
        nonlocal length, ended
        for number, line in enumerate(lines, 1):
            if number % LINES_BETWEEN == 0 and time.process_time() - start > MAX_SECONDS:
                raise DataError(
                    f"is too costly: it takes over {MAX_SECONDS} s of processor time; split it into several"
                )
            length += len(line)
            ended = line.endswith(("\n", "\r"))
            if length > MAX_ROW:
                raise DataError(f"holds a row of more than {MAX_ROW} characters; or a quote is never closed")
            yield _check_text(line)

    # Strict: else a quote that is never closed silently takes all rows that follow into its cell
    reader = csv.reader(measured(), delimiter=delimiter, strict=True)
    width, even, last = 0, True, 0  # of the first row; whether all rows but the last are as wide; of the last
    try:
        for cells in reader:
            length = 0
            if len(cells) > MAX_COLUMNS:
                raise DataError(f"has {len(cells)} columns, the limit is {MAX_COLUMNS}")
            if any(cell and not cell.isspace() for cell in cells):
                even, last, width = even and last >= width, len(cells), width or len(cells)
                yield cells
        if not ended and even and last < width:
            line = reader.line_num
            raise DataError(f"ends in the middle of a row, its line {line}; if it is complete, end that line")
    except csv.Error as error:
        raise DataError(f"is not a table: line {reader.line_num}: {error}") from None


def sample_rows(text: str, delimiter: str) -> tuple[list[list[str]], str | None]:
    """The first rows of a head, and the error that ended reading."""
    rows: list[list[str]] = []
    try:
        for row in read_rows(io.StringIO(text, newline=""), delimiter):
            rows.append(row)
            if len(rows) > SAMPLE:
                break
    except DataError as error:
        return rows, str(error)
    return rows, None
