"""Messages of Triton as plain dictionaries, with numbers as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(message: Any) -> dict[str, Any]:
    """The fields of a protobuf message that are set: dictionaries, lists, numbers, strings.

    Unlike protobuf's own JSON, 64-bit integers stay integers. Enums become their names.
    """
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _one(inner, value[key]) for key in value}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        return _one(field, value)
    if isinstance(value, Mapping):
        return {str(key): _one(field, one) for key, one in value.items()}
    return [_one(field, one) for one in value]


def _one(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
