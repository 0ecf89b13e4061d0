"""Why a value or a row was refused: a closed set of typed reasons."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """What goes into the quarantine's ``reason`` column; names never change once published."""

    # rows
    CSV_QUOTING = "csv_quoting"
    COLUMN_COUNT = "column_count"
    ROW_TOO_LONG = "row_too_long"
    NOT_UTF8 = "not_utf8"
    JSON_SYNTAX = "json_syntax"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_FIELD = "unknown_field"
    # ids
    MISSING = "missing"
    ID_TOO_LONG = "id_too_long"
    # values
    CONTROL_CHARACTERS = "control_characters"
    WRONG_TYPE = "wrong_type"
    NOT_A_NUMBER = "not_a_number"
    NOT_FINITE = "not_finite"
    NOT_WHOLE = "not_whole"
    NEGATIVE = "negative"
    OUT_OF_RANGE = "out_of_range"
    MONEY_SYNTAX = "money_syntax"
    MONEY_RANGE = "money_range"
    MONEY_PERIOD = "money_period"
    CURRENCY_UNKNOWN = "currency_unknown"
    DATE_SYNTAX = "date_syntax"
    COUNTRY_UNKNOWN = "country_unknown"
    ZONE_UNKNOWN = "zone_unknown"
    LANGUAGE_UNKNOWN = "language_unknown"
    LEVEL_UNKNOWN = "level_unknown"
    VALUE_UNKNOWN = "value_unknown"
    TOO_LONG = "too_long"
    TOO_MANY_ITEMS = "too_many_items"
    ITEM_INVALID = "item_invalid"
    # two fields together
    RANGE_REVERSED = "range_reversed"
    HALF_KNOWN = "half_known"


MEANING: dict[Reason, str] = {
    Reason.CSV_QUOTING: "a quote that is not closed, or text after a closing quote",
    Reason.COLUMN_COUNT: "more or fewer columns than the header has",
    Reason.ROW_TOO_LONG: "a row of more than 16 MiB or, quoted, of more than 10,000 lines",
    Reason.NOT_UTF8: "bytes that are not UTF-8",
    Reason.JSON_SYNTAX: "a line that is not JSON (NaN and infinities are not)",
    Reason.NOT_AN_OBJECT: "a JSON line that is not an object",
    Reason.UNKNOWN_FIELD: "without a map: a key that no record has",
    Reason.MISSING: "no id",
    Reason.ID_TOO_LONG: "an id of more than 128 bytes",
    Reason.CONTROL_CHARACTERS: "control, zero-width or bidirectional characters in an id",
    Reason.WRONG_TYPE: "a value of a type that the field cannot take, such as a list for a number",
    Reason.NOT_A_NUMBER: "text that is not a number",
    Reason.NOT_FINITE: "NaN or an infinity",
    Reason.NOT_WHOLE: "a fraction where a whole number belongs",
    Reason.NEGATIVE: "a number below zero",
    Reason.OUT_OF_RANGE: "a number outside the field's range",
    Reason.MONEY_SYNTAX: "text that is not an amount of money",
    Reason.MONEY_RANGE: "a range where one amount belongs, or a range whose ends are reversed",
    Reason.MONEY_PERIOD: 'money of another period than the field\'s, as "$500 fixed" for a rate',
    Reason.CURRENCY_UNKNOWN: "a currency without a rate in the map's [currency.rates]",
    Reason.DATE_SYNTAX: "text that is not a date of the expected forms",
    Reason.COUNTRY_UNKNOWN: "not the name or code of a country",
    Reason.ZONE_UNKNOWN: "not an IANA time zone",
    Reason.LANGUAGE_UNKNOWN: "not the name or code of a language",
    Reason.LEVEL_UNKNOWN: "not a level of skill (1 to 5) or language (A1 to C2, 1 to 6)",
    Reason.VALUE_UNKNOWN: "not a value of the enumeration, and not in the map's `values`",
    Reason.TOO_LONG: "text longer than the field's limit",
    Reason.TOO_MANY_ITEMS: "a list longer than 1,000 items",
    Reason.ITEM_INVALID: "an item of a list that cannot be used",
    Reason.RANGE_REVERSED: "a range that ends before it begins",
    Reason.HALF_KNOWN: "one end of the working hours without the other",
}


class Bad(Exception):
    """A value that cannot be used. ``item`` is the part of a list that is at fault, if one is."""

    def __init__(self, reason: Reason, detail: str = "", item: object = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or MEANING[reason]
        self.item = item
