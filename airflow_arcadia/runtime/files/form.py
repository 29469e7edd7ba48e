"""The form of an upload (``multipart/form-data``), read piece by piece as it comes."""

from __future__ import annotations

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

FILE = "file"
_MAX_PARTS = 32
_MAX_FIELD_BYTES = 4096


class FormError(ValueError):
    """The request is not such a form, or not the form of an upload."""


class UploadForm:
    """A form with one file and some short fields.

    ``fields`` are the other fields so far; ``filename`` is None until the file has begun.

    :param content_type: of the request. Raises :class:`FormError` unless it is a form's.
    """

    def __init__(self, content_type: bytes) -> None:
        kind, options = parse_options_header(content_type.decode("latin-1"))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise FormError("The request's Content-Type must be multipart/form-data with a boundary.")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = 0
        self._ended = False
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        """Name of the field that is being read; None for the file."""
        self._value = bytearray()
        self._file = bytearray()
        """What was read of the file and not yet taken."""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._read_header_name,
                    "on_header_value": self._read_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._read_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise FormError(str(error)) from error

    def feed(self, data: bytes) -> bytes:
        """Read on; returns the bytes of the file that were in it. Raises :class:`FormError`."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise FormError(f"The form cannot be read: {error}") from error
        content = bytes(self._file)
        self._file.clear()
        return content

    def finish(self) -> None:
        """Raise :class:`FormError` unless the whole form came, with a file in it."""
        if not self._ended:
            raise FormError("The form is cut off.")
        if self.filename is None:
            raise FormError(f"The form has no {FILE}.")

    # -- called by the parser --------------------------------------------------------------------------

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise FormError(f"The form has more than {_MAX_PARTS} fields.")
        self._headers = {}

    def _read_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _read_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        told = self._headers.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(told)
        name = _text(options.get(b"name", b""), "name of a field")
        self._value.clear()
        if name != FILE:
            self._field = name
        elif self.filename is not None:
            raise FormError(f"The form has more than one {FILE}.")
        else:
            self._field = None
            self.filename = _text(options.get(b"filename", b""), "name of the file")

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._file += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise FormError(f"A field of the form has more than {_MAX_FIELD_BYTES} bytes.")

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._field] = _text(bytes(self._value), "value of a field")

    def _end(self) -> None:
        self._ended = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormError(f"The {what} is not UTF-8.") from error
