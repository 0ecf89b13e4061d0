"""Values as people write them: numbers, money, dates, places, names of skills, texts."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matchwright.engine.errors import InvalidArgument
from matchwright.engine.records import FIELDS, dates, places
from matchwright.engine.records.markup import strip_html
from matchwright.engine.records.money import Currency, MoneyRule, money
from matchwright.engine.records.numbers import number, whole
from matchwright.engine.records.reasons import MEANING, Bad, Reason
from matchwright.engine.records.scrub import clean, scrub
from matchwright.engine.records.skills import Skills, normalise, skills_with, words
from matchwright.engine.records.values import Options, parser_for


def reason(parse, *arguments) -> Reason:
    with pytest.raises(Bad) as error:
        parse(*arguments)
    assert error.value.detail
    return error.value.reason


def test_every_reason_has_a_meaning(repo_root):
    page = (repo_root / "docs" / "ingest.md").read_text("utf-8")
    for one in Reason:
        assert f"| `{one}` | {MEANING[one]} |" in page


# ── Numbers and money ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", "7"), (" 1,000,000 ", "1000000"), ("93%", "93"), ("1 000.5", "1000.5"),
        ("1e3", "1000"), (".5", "0.5"), ("5.", "5"), ("+3", "3"), ("1'000", "1000"), (7, "7"),
        (0.1, "0.1"),
    ],
)  # fmt: skip
def test_numbers(text, value):
    assert number(text) == Decimal(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", Reason.NOT_A_NUMBER), ("1,00", Reason.NOT_A_NUMBER), ("1_000", Reason.NOT_A_NUMBER),
        ("١٢", Reason.NOT_A_NUMBER), ("0x1", Reason.NOT_A_NUMBER), ("1" * 65, Reason.NOT_A_NUMBER),
        ("NaN", Reason.NOT_FINITE), ("-inf", Reason.NOT_FINITE), (float("inf"), Reason.NOT_FINITE),
        ("1e999", Reason.OUT_OF_RANGE), (10**400, Reason.OUT_OF_RANGE), (True, Reason.WRONG_TYPE),
        ([1], Reason.WRONG_TYPE), (None, Reason.WRONG_TYPE),
    ],
)  # fmt: skip
def test_what_is_no_number(text, why):
    assert reason(number, text) is why


def test_decimal_commas():
    assert number("1.234,56", decimal_comma=True) == Decimal("1234.56")
    assert number("1,5", decimal_comma=True) == Decimal("1.5")
    with pytest.raises(Bad):
        number("1.5", decimal_comma=True)


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_survive_grouping(value):
    assert number(f"{value:,}") == value
    assert whole(number(value), -(10**12), 10**12, exact=True) == value


@pytest.mark.parametrize(
    ("text", "low", "high", "code", "period"),
    [
        ("$1.4K", "1400", "1400", "USD", None),
        ("1,000,000", "1000000", "1000000", None, None),
        ("$10-$20", "10", "20", "USD", None),
        ("$10 - $20 per hour", "10", "20", "USD", "hour"),
        ("€25/hr", "25", "25", "EUR", "hour"),
        ("25 eur / h", "25", "25", "EUR", "hour"),
        ("USD 30 to 45", "30", "45", "USD", None),
        ("1-2K", "1000", "2000", None, None),
        ("$50+", "50", None, "USD", None),
        ("up to $20", None, "20", "USD", None),
        ("< 500", None, "500", None, None),
        ("from £5", "5", None, "GBP", None),
        ("$500 fixed", "500", "500", "USD", "fixed"),
        ("A$30", "30", "30", "AUD", None),
        ("1.5 million", "1500000", "1500000", None, None),
        (12.5, "12.5", "12.5", None, None),
    ],
)
def test_money(text, low, high, code, period):
    said = money(text)
    ends = tuple(None if end is None else Decimal(end) for end in (low, high))
    assert (said.low, said.high, said.code, said.period) == (*ends, code, period)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("$", Reason.MONEY_SYNTAX), ("a lot", Reason.MONEY_SYNTAX), ("1.2.3", Reason.MONEY_SYNTAX),
        ("-$5", Reason.NEGATIVE), ("-5", Reason.NEGATIVE), (-5, Reason.NEGATIVE),
        ("$20-$10", Reason.MONEY_RANGE), ("$5 - €7", Reason.CURRENCY_UNKNOWN),
        ("nan", Reason.NOT_FINITE), ("9" * 65, Reason.MONEY_SYNTAX), ([], Reason.WRONG_TYPE),
    ],
)  # fmt: skip
def test_what_is_no_money(text, why):
    assert reason(money, text) is why


def rule(take="only", period="hour", other="refuse"):
    currency = Currency("USD", {"EUR": Decimal("1.08")}, "USD")
    return MoneyRule(currency, take, period, other, 0, 10**8)


def test_money_to_cents():
    assert rule().cents("€10") == 1_080
    assert rule().cents("10", "EUR") == 1_080
    assert rule("low").cents("$10-$20") == 1_000
    assert rule("high").cents("$10-$20") == 2_000
    assert rule("high").cents("$10+") is None
    assert rule(other="unknown").cents("$500 fixed") is None
    assert reason(rule().cents, "$500 fixed") is Reason.MONEY_PERIOD
    assert reason(rule().cents, "$10-$20") is Reason.MONEY_RANGE
    assert reason(rule().cents, "¥10") is Reason.CURRENCY_UNKNOWN
    assert reason(rule().cents, "$9999M") is Reason.OUT_OF_RANGE
    assert reason(rule().cents, "1e9999") is Reason.OUT_OF_RANGE


@given(st.integers(0, 10**6), st.integers(0, 99))
def test_cents_are_exact(units, cents):
    assert rule().cents(f"${units:,}.{cents:02}") == units * 100 + cents
    assert rule().cents(float(f"{units}.{cents:02}")) == units * 100 + cents


@given(st.text(max_size=80))
@example("1 " * 32)
@example("9" * 30 + " " * 30 + "x")
def test_any_text_is_money_or_refused(text):
    try:
        said = money(text)
    except Bad as bad:
        assert bad.reason in MEANING  # noqa: PT017
    else:
        assert said.low is not None or said.high is not None


# ── Days ──────────────────────────────────────────────────────────────────────────────────────


@given(st.dates(dt.date(1970, 1, 1), dt.date(2100, 12, 31)))
def test_days(date):
    expected = (date - dt.date(1970, 1, 1)).days
    assert dates.day(date.isoformat()) == expected
    assert dates.day(date.strftime("%d/%m/%Y"), ("%Y-%m-%d", "%d/%m/%Y")) == expected
    assert dates.day(expected, ("days",)) == dates.day(str(expected), ("native",)) == expected
    assert dates.day(expected * 86_400 + 86_399, ("epoch_s",)) == expected
    assert dates.day(dt.datetime.combine(date, dt.time(12))) == expected


def test_days_are_utc():
    assert dates.day("2024-07-04T23:25:00-05:00") == dates.day("2024-07-05")
    assert dates.day("2014-11-06 11:15:51 UTC") == dates.day("2014-11-06")


@pytest.mark.parametrize("text", ["2024-02-30", "today", "1969-12-31", "9999-01-01", "", 5, True])
def test_what_is_no_day(text):
    assert reason(dates.day, text)


def test_clocks():
    times = {"09:30": 570, "9 am": 540, "12 am": 0, "12:15 PM": 735, "17:00:00": 1_020}
    assert {text: dates.clock(text, 1_439) for text in times} == times
    for text in ("25:00", "12:60", "13 pm", "noon"):
        assert reason(dates.clock, text, 1_439)


# ── Places ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("USA", "US"), ("United States", "US"), ("us", "US"), ("ARE", "AE"), ("Turkey", "TR"),
        ("Türkiye", "TR"), ("Cote D'Ivoire", "CI"), ("Côte d’Ivoire", "CI"), ("Kosovo", "XK"),
        ("Lao People's Democratic Republic", "LA"), ("South Korea", "KR"), ("UK", "GB"),
        ("Macedonia", "MK"), ("Congo, the Democratic Republic of the", "CD"),
    ],
)  # fmt: skip
def test_countries(text, code):
    assert places.country(text) == code
    assert places.country(code) == code


def test_languages_and_levels():
    for text in ("English", "en", "eng", "en-GB", "EN_us"):
        assert places.language(text) == "en"
    assert places.language("Mandarin") == "zh"
    assert [places.language_level(x) for x in ("A1", "fluent", 6, "", None)] == [
        1,
        5,
        6,
        None,
        None,
    ]
    assert [places.skill_level(x) for x in ("expert", "3", 1.0, None)] == [5, 3, 1, None]
    for level in (0, 7, "guru", True, 1.5, []):
        assert reason(places.skill_level, level) is Reason.LEVEL_UNKNOWN


# ── Skills ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "same",
    [
        ("React", "React.js", "ReactJS", "react js", "REACT-JS", " reactjs "),
        ("Node.js", "nodejs", "Node JS", "node"),
        ("C#", "c sharp", "C #", "csharp"),
        ("C++", "cpp", "C ++", "Ｃ＋＋"),
        (".NET", "dotnet", ".net framework"),
        ("Data Entry", "data-entry", "DATA_ENTRY"),
        ("knitwear repair", "Knitwear-Repair", "knitwear  repair™"),
        ("foo.js", "FooJS", "foo js"),
    ],
)
def test_spellings_of_one_skill(same):
    assert {normalise(spelling) for spelling in same} == {(same[0],)}


def test_skills_that_stay_apart():
    names = (
        "C",
        "C++",
        "C#",
        "R",
        "F#",
        ".NET",
        "ASP.NET",
        "Java",
        "JavaScript",
        "net",
        "X++",
        "D",
    )
    assert len({normalise(name) for name in names}) == len(names)


def test_skills_that_are_several_or_none():
    assert normalise("HTML/CSS") == ("HTML", "CSS")
    assert [normalise(text) for text in ("", " ", "***", "\u200b")] == [()] * 4


@given(st.text(max_size=40))
@example("İ.js")
@example(".a.b")
@example("a js js")
def test_names_of_skills_are_stable(text):
    for name in normalise(text):
        assert normalise(name) == (name,)
        assert words(words(name)) == words(name)
        assert name == name.strip()


def test_own_aliases_win(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        '[skills]\n"Knitting" = ["reactjs", "darning"]\n[split]\n"a/b" = ["C", "darning"]'
    )
    own = skills_with(path)
    assert own.normalise("React.js") == own.normalise("Darning") == ("Knitting",)
    assert own.normalise("A B") == ("C", "Knitting")
    assert own.normalise("node") == ("Node.js",)
    assert normalise("React.js") == ("React",)


@pytest.mark.parametrize(
    "text", ["skills = 1", "[skill]", '[skills]\na = "b"', '[skills]\na = ["***"]', "[", "\x00"]
)
def test_bad_aliases(text, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument):
        skills_with(path)
    with pytest.raises(InvalidArgument, match="both"):
        Skills({"A": ["x"], "B": ["X"]}, {})


# ── Text ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("My name is Priya Sharma and I code", "and I code"),
        ("I'm Mark, a Ruby developer", "I'm , a Ruby developer"),
        ("I'm Mark Smith, dev", "I'm , dev"),
        ("I am Ruby on Rails developer", "I am Ruby on Rails developer"),
        ("Mail foo.bar@gmail.com or foo (at) bar (dot) com", "Mail or"),
        ("Call +1 (555) 123-4567 or 0044 20 7946 0958.", "Call or ."),
        ("see https://x.com/abc and www.foo.bar", "see and"),
        ("find me on github.com/foo and t.me/foo", "find me on and"),
        ("ASP.NET/C#, Node.js/Express, Make.com", "ASP.NET/C#, Node.js/Express, Make.com"),
        ("1,000,000 from 2019-01-01 to 2020-02-02", "1,000,000 from 2019-01-01 to 2020-02-02"),
        ("live in San Francisco", "live in San Francisco"),
        ("Will you do it in May?", "Will you do it in May?"),
        ("Jean-Pierre's shop", "shop"),
        ("ask @someone_99 or telegram: @someone", "ask or telegram:"),
        ("pay\u200bpal \u202eabc\x00", "paypal abc"),
        ("Ｐｙｔｈｏｎ", "Python"),
    ],
)
def test_scrub(text, left):
    assert scrub(text) == left


@given(st.text(max_size=200))
@example("a@b.c@d.e")
@example("my name is my name is my name is")
@example("Emily Emily's I'm I'm Emily")
def test_scrub_is_idempotent(text):
    once = scrub(text)
    assert scrub(once) == once
    assert clean(once) == once


@given(
    st.lists(st.sampled_from(["Emily", "I'm", "my name is", "Mark", "-", "'s", "@", "a.com/", "1"]))
)
def test_scrub_of_names_is_idempotent(parts):
    once = scrub(" ".join(parts))
    assert scrub(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "A" * 100_000, "Maria " * 16_000, "a.b" * 33_000, "@" * 100_000, "1 " * 50_000,
        "I'm " * 25_000, ("a" * 60 + ".") * 1_600, "a@" * 50_000, "(" * 100_000, "www." * 25_000,
    ],
)  # fmt: skip
def test_no_text_takes_long(text):
    started = dt.datetime.now(dt.UTC)
    scrub(text)
    strip_html(text.replace("a", "<div>"))
    assert (dt.datetime.now(dt.UTC) - started).total_seconds() < 5


def test_markup():
    page = "hi<br />there &amp; <b>all</b><ul><li>a</li></ul><script>x()</script><a href='y'>z</a>"
    parse = parser_for(FIELDS["job"]["text"], Options(html=True))
    assert parse(page) == "hi\nthere & all\n\na\n\nz"
    assert parse("a < b and c > d") == "a < b and c > d"
    assert parse("vÃ©rifiÃ©") == "vérifié"
    assert parse("<p></p>") is None
    title = parser_for(FIELDS["job"]["title"], Options(truncate=True))
    assert title("one\ntwo") == "one two"
    assert len(title("x" * 5_000)) == 1_000
