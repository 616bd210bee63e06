"""Arithmetic without `eval`: right where Python is, refused before it costs, and nothing but arithmetic."""

import math
import warnings
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ToolRefused
from headrace.identity import Owner
from headrace.ports import Run, ToolCall, ToolContext
from headrace.toolbox import Toolbox
from headrace.tools.calculate import MAX_CHARACTERS, CalculateTool, calculate

RUN = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1)
CONTEXT = ToolContext(run=RUN, tool_call_id="c")

VALUES: list[tuple[str, Any]] = [
    ("1 + 2 * 3", 7),
    ("(1 + 2) * 3", 9),
    ("-2 ** 2", -4),
    ("2 ** 3 ** 2", 512),
    ("2 ** -1", 0.5),
    ("10 ** -400", 0.0),
    ("7 // 2", 3),
    ("-7 // 2", -4),
    ("-7 % 3", 2),
    ("7 / 2", 3.5),
    ("6 / 2", 3.0),
    ("0.1 + 0.2", 0.1 + 0.2),
    ("1e3", 1000.0),
    (".5 + 1.", 1.5),
    ("1_000 + 1", 1001),
    ("+-+1", -1),
    (" 1 +\n2 ", 3),
    ("3 × 4 ÷ 2 − 1", 5.0),
    ("2*π", math.tau),
    ("pi * e / tau", math.e / 2),
    ("sqrt(2)", math.sqrt(2)),
    ("pow(2, 10)", 1024),
    ("log(8, 2) + log2(8) + log10(1000) + log(e)", 3.0 + 3.0 + 3.0 + 1.0),
    ("sin(pi / 2) + cos(0) + tan(0)", 2.0),
    ("asin(1) - acos(0) + atan(0)", 0.0),
    ("round(2.675, 2)", 2.67),
    ("round(2.5)", 2),
    ("round(2.5, 0)", 2.0),
    ("round(1250, -2)", 1200),
    ("floor(-1.5) + ceil(-1.5) + trunc(-1.5)", -4),
    ("factorial(20)", 2432902008176640000),
    ("factorial(170) / factorial(169)", 170.0),
    ("factorial(200) // factorial(198)", 39800),
    ("comb(52, 5)", 2598960),
    ("perm(5, 2)", 20),
    ("gcd(84, 36, 6) + lcm(4, 6, 10)", 66),
    ("max(1, 2, 3) - min([1, 2, 3])", 2),
    ("sum((1, 2, 3.5))", 6.5),
    ("sum([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])", 1.0),
    ("hypot(3, 4) + abs(-2) + exp(0)", 8.0),
    ("(-8) ** 3", -512),
    ("2 ** 4095 // 2 ** 4094", 2),
    ("log2(2 ** 4000)", 4000.0),
    ("+".join(["1"] * 500), 500),
    ("-".join(["1"] * 500), -498),
    ("(" * 90 + "1" + ")" * 90, 1),
    ("-" * 90 + "1", 1),
]


@pytest.mark.parametrize(("expression", "value"), VALUES)
def test_the_value_is_right(expression: str, value: Any) -> None:
    result = calculate(expression)
    assert result == value
    assert type(result) is type(value)


HOSTILE = [
    # cost
    "9**9**9",
    "9**9**9**9",
    "(9**9)**(9**9)",
    "2**4097",
    "pow(10, 100000)",
    "(2**4000)*(2**4000)",
    "factorial(501)",
    "factorial(factorial(10))",
    "factorial(2**4000)",
    "comb(10**9, 10**8)",
    "perm(10**9, 10**8)",
    "lcm(2**4000, 3**2500)",
    "round(5, -1000000000)",
    "round(5, 10**20)",
    "exp(1000)",
    "1e308 * 10",
    "1e999",
    "-1e999",
    "10.0 ** 400",
    "sqrt(2**4000)",
    "2**4000 / 3.0",
    "9" * (MAX_CHARACTERS + 1),
    "(" * 500 + ")" * 500,
    "(" * 300 + "1" + ")" * 300,
    "-" * 999 + "1",
    "[" * 1000,
    "1" + "**1" * 300,
    "abs(" * 150 + "1" + ")" * 150,
    # no real value
    "1 / 0",
    "1 // 0",
    "1 % 0",
    "0 ** -1",
    "0.0 ** -1",
    "(-8) ** (1 / 3)",
    "(-1) ** 0.5",
    "sqrt(-1)",
    "log(0)",
    "log(8, 1)",
    "acos(2)",
    "factorial(-1)",
    "factorial(2.5)",
    "gcd(1.5, 2)",
    "round(1, 0.5)",
    "1j",
    "1e5j",
    # wrong numbers of arguments
    "sqrt()",
    "sqrt(1, 2)",
    "max()",
    "max([])",
    "max([1], [2])",
    "log(1, 2, 3)",
    "round(1, 2, 3)",
    # not arithmetic
    "",
    " ",
    "1 +",
    "1 2",
    "(1",
    "1,234",
    "1,000",
    "1, 000.50",
    "$5",
    "15%",
    "5 km",
    "2^10",
    "5²",
    "٣ + 1",
    "0x10",
    "007",
    "1__0",
    "True",
    "None",
    "...",
    "x",
    "pi()",
    "sqrt",
    "eval(1)",
    "exit()",
    "__import__('os')",
    "().__class__",
    "(1).bit_length()",
    "1 .real",
    "'a' * 9",
    '"a"',
    "b'a'",
    'f"{1}"',
    "[1]",
    "[1][0]",
    "{1}",
    "max(*[1, 2])",
    "max(1, key=abs)",
    "lambda: 1",
    "[x for x in (1, 2)]",
    "max(x for x in (1, 2))",
    "1 if 1 else 2",
    "1if 1else 2",
    "1 and 2",
    "not 1",
    "~1",
    "1 << 9",
    "1 | 2",
    "7 @ 2",
    "1 == 1",
    "1 < 2",
    "(x := 1)",
    "x = 1",
    "import os",
    "1; 2",
    "1 # x",
    "await x",
    "yield",
    "1\\\n+1",
    "1\x00",
    "\ud800",
    "\u202e1+1",
    "abs(abs)",
    "1(2)",
    "(1)(2)",
    "abs(1)(2)",
]


@pytest.mark.parametrize("expression", HOSTILE, ids=[repr(each)[:40] for each in HOSTILE])
def test_what_is_too_much_or_no_arithmetic_is_refused_in_words(expression: str) -> None:
    with pytest.raises(ToolRefused) as refused:
        calculate(expression)
    assert refused.value.message != ToolRefused.detail
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("2^10", "Write ** for a power"),
        ("1,234.5", "thousands separators"),
        ("1,000", "thousands separators"),
        ("5 / 0", "`/` divides by zero"),
        ("nope(1)", "There is no function 'nope'. There are: abs, "),
        ("x + 1", "There is no constant 'x'. There are: pi, e, tau."),
        ("9**9**9", "`**` becomes too large"),
        ("sqrt(-4)", "`sqrt` has no real value"),
        ("7 @ 2", "cannot be read from '@ 2'"),
    ],
)
def test_a_refusal_says_what_to_change(expression: str, words: str) -> None:
    with pytest.raises(ToolRefused) as refused:
        calculate(expression)
    assert words in refused.value.message


# --- against Python ---------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 10**6).map(str) | st.floats(0, 1e6, allow_subnormal=False).map(repr)


def _grown(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(smaller, st.sampled_from(["+", "-", "*", "/", "//", "%"]), smaller).map(" ".join),
        st.tuples(NUMBERS, st.integers(-3, 5)).map(lambda each: f"{each[0]} ** {each[1]}"),
        smaller.map(lambda each: f"({each})"),
        smaller.map(lambda each: f"-{each}"),
        st.tuples(st.sampled_from(["abs", "round"]), smaller).map(lambda each: f"{each[0]}({each[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), smaller, smaller).map(
            lambda each: f"{each[0]}({each[1]}, {each[2]})"
        ),
    )


@given(st.recursive(NUMBERS, _grown, max_leaves=12))
def test_it_agrees_with_python(expression: str) -> None:
    if len(expression) > MAX_CHARACTERS:
        return
    try:
        value = eval(expression)
    except ArithmeticError:
        value = math.nan
    if isinstance(value, complex) or not math.isfinite(value):
        with pytest.raises(ToolRefused):
            calculate(expression)
    else:
        assert repr(calculate(expression)) == repr(value)


@given(st.text(st.sampled_from("0123456789.e+-*/%()[], sqrtlogmaxpi_jx'\"<=#\\\n"), max_size=60))
def test_any_text_gives_a_number_or_a_refusal_and_never_a_warning(expression: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            value = calculate(expression)
        except ToolRefused:
            return
    assert type(value) in (int, float)
    assert math.isfinite(value) if isinstance(value, float) else value.bit_length() <= 4096


# --- the tool ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("6 * 7", {"value": 42}),
        ("2 ** 53", {"value": 2**53}),
        ("2 ** 53 + 1", {"value": 9007199254740992.0, "exact": "9007199254740993"}),
        ("-3 ** 100", {"value": -float(3**100), "exact": str(-(3**100))}),
        ("1 / 4", {"value": 0.25}),
    ],
)
async def test_the_result_is_a_json_number(expression: str, result: dict[str, Any]) -> None:
    given = await CalculateTool().call({"expression": expression}, CONTEXT)
    assert given == result
    assert msgspec.json.decode(msgspec.json.encode(given)) == result


@pytest.mark.parametrize("expression", ["2 ** 4000", "9" * MAX_CHARACTERS, "-(10 ** 309)"])
async def test_a_whole_number_that_no_double_reaches_is_refused(expression: str) -> None:
    with pytest.raises(ToolRefused, match="too large"):
        await CalculateTool().call({"expression": expression}, CONTEXT)


@pytest.mark.parametrize("arguments", ["{}", '{"expression": 5}', '{"expression": ""}', '{"expression": "1", "x": 1}'])
async def test_other_arguments_do_not_fit(arguments: str) -> None:
    call = ToolCall(id="c", name="calculate", arguments=arguments)
    (outcome,) = [each async for each in Toolbox([CalculateTool()]).execute(call, RUN)]
    assert outcome.error is not None
    assert outcome.error.code == "tool.arguments_invalid"


async def test_a_model_reads_the_refusal() -> None:
    call = ToolCall(id="c", name="calculate", arguments='{"expression": "1/0"}')
    (outcome,) = [each async for each in Toolbox([CalculateTool()]).execute(call, RUN)]
    assert (outcome.output, outcome.is_error) == ("`/` divides by zero here.", True)
    assert CalculateTool().idempotent
