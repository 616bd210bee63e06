"""Arithmetic for a model, and never Python's `eval`.

An expression is read by Python's parser, and only what stands in the tables below is computed. Its cost is bounded
before anything is computed: by its length and depth, and by the size that a whole number may grow to.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from headrace.errors import ToolRefused
from headrace.ports import Tool, ToolContext

Number: TypeAlias = int | float

MAX_CHARACTERS = 1_000
MAX_DEPTH = 100
MAX_BITS = 4_096
"""Of a whole number on the way. The result has to be within the range of a double."""
_MAX_FACTORIAL = 500
"""Whose factorial is within `MAX_BITS`."""
_MAX_DIGITS = 400
"""That a number is rounded to: a double has none beyond."""
_EXACT = 2**53
"""Up to here a double holds every whole number, so any reader of JSON gets it as it is."""


def calculate(expression: str) -> Number:
    """The value of an expression, by Python's rules of precedence and rounding. Raises `ToolRefused`."""
    if len(expression) > MAX_CHARACTERS:
        raise ToolRefused(f"The expression is longer than {MAX_CHARACTERS:,} characters: compute it in steps.")
    text = expression.translate(_TYPOGRAPHY).strip()
    _check_words(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolRefused(
            f"The expression is not well formed: check its parentheses and operators.{_SEPARATORS}"
        ) from error
    return _finite(_value(tree.body, 0), "The result")


# --- reading ----------------------------------------------------------------------------------------------------------

_SEPARATORS = " Numbers are written as 1234.5, without thousands separators or units."
_TYPOGRAPHY = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "π": "pi", "\u00a0": " ", "\n": " ", "\r": " "})
"""As people and models write it."""
_WORD = re.compile(
    r"""
    \s+
    | (?: (?:0|[1-9][0-9_]*) (?:\.[0-9]*)? | \.[0-9]+ ) (?:[eE][+-]?[0-9]+)? (?![\w.])
    | [A-Za-z][A-Za-z0-9]* (?!\w)
    | \*\*? | //? | [-+%(),\[\]]
    """,
    re.VERBOSE | re.ASCII,
)


def _check_words(text: str) -> None:
    """Raises for what is no part of arithmetic, so that the parser meets neither text, nor comments, nor code."""
    position = 0
    while position < len(text):
        word = _WORD.match(text, position)
        if word is None:
            hint = " Write ** for a power." if text[position] == "^" else _SEPARATORS
            raise ToolRefused(f"The expression cannot be read from {text[position : position + 20]!r} on.{hint}")
        position = word.end()


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise ToolRefused(f"The expression is nested deeper than {MAX_DEPTH} levels: compute it in steps.")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _finite(number, "A number")
        case ast.BinOp():
            return _chained(node, depth)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth + 1)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _called(name, arguments, depth)
        case ast.Name(id=name):
            raise ToolRefused(f"There is no constant {name[:40]!r}. There are: {', '.join(_CONSTANTS)}.")
        case ast.Tuple():
            raise ToolRefused(f"A comma stands between the numbers of a function only.{_SEPARATORS}")
        case _:
            raise ToolRefused("Only numbers, operators and the functions that the tool names can stand here.")


def _chained(node: ast.expr, depth: int) -> Number:
    """A chain such as `1 + 2 - 3` is a tree as deep as it is long, so it is no nesting here. `_WORD` knows no operator
    that is not in the table."""
    steps: list[ast.BinOp] = []
    while isinstance(node, ast.BinOp):
        steps.append(node)
        node = node.left
    value = _value(node, depth + 1)
    for step in reversed(steps):
        operation = _OPERATORS[type(step.op)]
        value = _applied(operation.apply, (value, _value(step.right, depth + 1)), f"`{operation.sign}`")
    return value


def _called(name: str, arguments: Sequence[ast.expr], depth: int) -> Number:
    if name not in _FUNCTIONS:
        raise ToolRefused(f"There is no function {name[:40]!r}. There are: {', '.join(_FUNCTIONS)}.")
    if len(arguments) == 1 and isinstance(arguments[0], ast.List | ast.Tuple):
        arguments = arguments[0].elts
    function, least, most = _FUNCTIONS[name]
    if not least <= len(arguments) <= most:
        takes = str(least) if least == most else f"{least} or more" if most == _MANY else f"{least} to {most}"
        raise ToolRefused(f"`{name}` takes {takes} numbers, not {len(arguments)}.")
    return _applied(function, [_value(each, depth + 1) for each in arguments], f"`{name}`")


# --- computing --------------------------------------------------------------------------------------------------------


def _applied(function: Callable[..., Any], values: Sequence[Number], what: str) -> Number:
    try:
        result = function(*values)
    except ZeroDivisionError as error:
        raise ToolRefused(f"{what} divides by zero here.") from error
    except OverflowError as error:
        raise _too_large(what) from error
    except ValueError as error:
        raise ToolRefused(f"{what} has no real value for these numbers.") from error
    except TypeError as error:
        raise ToolRefused(f"{what} takes whole numbers here.") from error
    if isinstance(result, complex):
        raise ToolRefused(f"{what} has no real value for these numbers.")
    return _finite(result, what)


def _finite(value: Number, what: str) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise _too_large(what)
    elif not math.isfinite(value):
        raise _too_large(what)
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise _too_large("The result") from error


def _too_large(what: str) -> ToolRefused:
    return ToolRefused(f"{what} becomes too large here. Numbers can go up to about 1.8e308: `log` may help.")


def _power(base: Number, exponent: Number) -> Any:
    """Raises `OverflowError` before a large whole number is computed, not after."""
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and int(base).bit_length() * exponent > 2 * MAX_BITS:
        raise OverflowError
    return base**exponent


def _factorial(n: Number) -> int:
    return math.factorial(_bounded(n, _MAX_FACTORIAL))


def _combinations(n: Number, k: Number) -> int:
    return math.comb(_bounded(n, MAX_BITS), _bounded(k, MAX_BITS))


def _permutations(n: Number, k: Number) -> int:
    return math.perm(_bounded(n, _MAX_FACTORIAL), _bounded(k, _MAX_FACTORIAL))


def _bounded(n: Number, most: int) -> int:
    if n > most:
        raise OverflowError
    return operator.index(n)  # type: ignore[arg-type]  # a float is told by TypeError


def _common_multiple(*values: int) -> int:
    multiple = 1
    for value in values:
        multiple = math.lcm(multiple, value)
        if multiple.bit_length() > MAX_BITS:
            raise OverflowError
    return multiple


def _rounded(value: Number, *digits: Number) -> Number:
    """Raises `OverflowError` for so many digits that Python would compute a power of ten of that length."""
    return round(value, *[_bounded(abs(each), _MAX_DIGITS) * (1 if each > 0 else -1) for each in digits])


def _sum(*values: Number) -> Number:
    """Of whole numbers exact, else with one rounding only."""
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


_MANY = MAX_CHARACTERS


class _Operator(NamedTuple):
    sign: str
    apply: Callable[[Any, Any], Any]


_OPERATORS: Mapping[type[ast.operator], _Operator] = {
    ast.Add: _Operator("+", operator.add),
    ast.Sub: _Operator("-", operator.sub),
    ast.Mult: _Operator("*", operator.mul),
    ast.Div: _Operator("/", operator.truediv),
    ast.FloorDiv: _Operator("//", operator.floordiv),
    ast.Mod: _Operator("%", operator.mod),
    ast.Pow: _Operator("**", _power),
}
_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}


class _Function(NamedTuple):
    apply: Callable[..., Any]
    least: int = 1
    most: int = 1
    """Arguments that it takes."""


_FUNCTIONS: Mapping[str, _Function] = {
    "abs": _Function(abs),
    "acos": _Function(math.acos),
    "asin": _Function(math.asin),
    "atan": _Function(math.atan),
    "atan2": _Function(math.atan2, 2, 2),
    "ceil": _Function(math.ceil),
    "comb": _Function(_combinations, 2, 2),
    "cos": _Function(math.cos),
    "cosh": _Function(math.cosh),
    "degrees": _Function(math.degrees),
    "exp": _Function(math.exp),
    "factorial": _Function(_factorial),
    "floor": _Function(math.floor),
    "gcd": _Function(math.gcd, 1, _MANY),
    "hypot": _Function(math.hypot, 1, _MANY),
    "lcm": _Function(_common_multiple, 1, _MANY),
    "log": _Function(math.log, 1, 2),
    "log10": _Function(math.log10),
    "log2": _Function(math.log2),
    "max": _Function(lambda *values: max(values), 1, _MANY),
    "min": _Function(lambda *values: min(values), 1, _MANY),
    "perm": _Function(_permutations, 2, 2),
    "pow": _Function(_power, 2, 2),
    "radians": _Function(math.radians),
    "round": _Function(_rounded, 1, 2),
    "sin": _Function(math.sin),
    "sinh": _Function(math.sinh),
    "sqrt": _Function(math.sqrt),
    "sum": _Function(_sum, 1, _MANY),
    "tan": _Function(math.tan),
    "tanh": _Function(math.tanh),
    "trunc": _Function(math.trunc),
}


# --- the tool ---------------------------------------------------------------------------------------------------------


class CalculateTool(Tool):
    """Computes an arithmetic expression."""

    name = "calculate"
    description = (
        "Computes an arithmetic expression, such as `round(1250 * 1.19 ** 3, 2)`, where whole numbers are exact. "
        f"Operators: {' '.join(each.sign for each in _OPERATORS.values())} and parentheses. "
        f"Constants: {', '.join(_CONSTANTS)}. Functions: {', '.join(_FUNCTIONS)}. "
        "Angles are in radians, `log` takes a base or is natural, `round` goes to the even neighbour at a half."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "expression": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_CHARACTERS,
                "description": "Numbers are written as 1234.5, without thousands separators or units.",
            }
        },
        "required": ["expression"],
        "additionalProperties": False,
    }
    idempotent = True
    timeout = 5.0

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> dict[str, Any]:
        """`value` is a finite number; `exact` has the digits of a whole one that a double may not hold."""
        value = calculate(arguments["expression"])
        if isinstance(value, float) or abs(value) <= _EXACT:
            return {"value": value}
        return {"value": _as_float(value), "exact": str(value)}
