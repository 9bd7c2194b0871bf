"""Options from dataclasses, and their --help, which fits terminals of 60 columns and more."""

import ast
import codecs
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

T = TypeVar("T")

FLAT = tyro.conf.arg(name="")
"""Annotates a dataclass within an options class; its fields become options without a prefix."""
FLAG = tyro.conf.FlagCreatePairsOff
"""Annotates a boolean that can only be switched on."""
POSITIONAL = tyro.conf.Positional
"""Annotates a positional argument."""

# The end of a help that says what holds if the option is not given.
_IF_UNSET = re.compile(r"(.*?) ((?:Unset:|[Bb]y default) .*)")
# Wider lines of prose are hard to read.
_PROSE_COLUMNS = 100
# A part of a command: a word, whose quotes may hold spaces, or an option with its first value.
_WORD = r"""(?:"[^"]*"|'[^']*'|[^\s"'])+"""
_PART = re.compile(rf"--\S+\s+(?!-){_WORD}|{_WORD}")


def parse(kind: type[T], arguments: Sequence[str], *, doc: str, default: T | None) -> T:
    """The options that the arguments give; the default's values for all others.

    A field's help is the docstring below it, which ends in "Unset: ..." if the default is None or empty. Fields with
    the metadata {"rare": True} come last; {"metavar": ...} names the value. Exits with 0 after --help, which begins
    with `doc`, and with 2 for bad options, explained on standard error.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_struct)
    known: dict[str, Any] = {} if default is None else {"default": default}
    with _help_page(doc):
        return tyro.cli(kind, args=arguments, description="", registry=registry, **known)


def _struct(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's view of a dataclass: its fields as options, flat ones replaced by their own fields, rare ones last."""
    kind = info.type
    # tyro wraps a union of classes, one for each command, in a dataclass of its own.
    if not dataclasses.is_dataclass(kind) or kind.__module__.partition(".")[0] == "tyro":
        return None
    flat: dict[str, Any] = {}
    fields: list[tuple[bool, StructFieldSpec]] = []
    for is_rare, field in _fields(kind, info.default):
        if FLAT in getattr(field.type, "__metadata__", ()):
            flat[field.name] = get_args(field.type)[0]
            fields += _fields(flat[field.name], field.default, prefix=f"{field.name}.")
        else:
            fields.append((is_rare, field))

    def make(**values: Any) -> Any:
        for name, inner in flat.items():
            names = [field.name for field in dataclasses.fields(inner)]
            values[name] = inner(**{each: values.pop(f"{name}.{each}") for each in names})
        return kind(**values)

    fields.sort(key=lambda field: field[0])
    return StructConstructorSpec(instantiate=make, fields=tuple(field for _, field in fields))


def _fields(kind: Any, default: Any, *, prefix: str = "") -> Iterator[tuple[bool, StructFieldSpec]]:
    """Whether each field of a dataclass is rare, and the field as an option; `prefix` is in its inner name only."""
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name) if isinstance(default, kind) else _default(field)
        if dataclasses.is_dataclass(value):
            texts[field.name] = " ".join((value.__doc__ or "").split())
        text, hint = _help(texts.get(field.name, ""), value)
        hinted: Any = Annotated[
            hints[field.name],
            tyro.conf.arg(
                name=field.name if prefix else None,
                help_behavior_hint=hint,
                metavar=field.metadata.get("metavar") or _metavar(hints[field.name]),
            ),
        ]
        option = StructFieldSpec(name=prefix + field.name, type=hinted, default=value, helptext=text)
        yield bool(field.metadata.get("rare")), option


def _texts(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, as one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return tyro.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def _help(text: str, default: Any) -> tuple[str, str | None]:
    """An option's help, and its highlighted end: the default, or the effect of leaving the option unset."""
    if default is tyro.MISSING:
        return text, "(required)"
    if default is None or default == ():
        found = _IF_UNSET.fullmatch(text)
        return (found[1], found[2]) if found else (text, "(default: none)")
    return text, f"(default: {_readable(default)})"


def _readable(value: Any) -> str:
    """A default as a person would write it.

    >>> _readable(True), _readable(1 / 3), _readable((256, 480)), _readable("a b")
    ('on', '0.3333', '256 480', "'a b'")
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_readable, value))
    return f"{value:.4g}" if isinstance(value, float) else shlex.quote(str(value))


def _metavar(hint: Any) -> str | None:
    """The placeholder of an optional value, without tyro's "{None}|"; None for tyro's own."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if type(None) not in get_args(hint):
        return None
    (kind,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is tuple:
        one = get_args(kind)[0].__name__.upper()
        return f"{one} [{one} ...]"
    return kind.__name__.upper()


@contextlib.contextmanager
def _help_page(doc: str) -> Iterator[None]:
    """Holds back what is printed within the block; help is then printed with the doc between usage and options."""
    page = _Page(sys.stdout)
    try:
        with contextlib.redirect_stdout(page):
            yield
    finally:
        text = page.text()
        usage, _, options = text.partition("\n\n")
        columns = shutil.get_terminal_size().columns
        if "usage: " in usage and options:
            # An option and its value stay together.
            usage = re.sub(r"\[[^][]*\]|--\S+ \w+", lambda option: option[0].replace(" ", "\xa0"), usage)
            usage = _filled(usage, columns, indent=" " * 7)
            text = f"{usage}\n\n{_laid_out(doc, columns)}\n\n{options}"
        sys.stdout.write(text)


class _Page(io.TextIOWrapper):
    """Text kept in memory; tyro frames and colors it as it would on the given stream."""

    def __init__(self, stream: Any) -> None:
        # tyro draws frames only if the encoding is spelled utf-8.
        encoding = codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name
        super().__init__(io.BytesIO(), encoding=encoding, errors="backslashreplace")
        self._is_terminal = stream.isatty()

    def isatty(self) -> bool:
        """Whether the given stream is a terminal."""
        return self._is_terminal

    def text(self) -> str:
        """All that was written."""
        self.seek(0)
        return self.read()


def _laid_out(doc: str, columns: int) -> str:
    """A module's docstring at a terminal's width: prose is filled, commands keep their lines."""
    return "\n\n".join(
        _commands(block, columns) if block.startswith(" ") else _prose(block, min(columns, _PROSE_COLUMNS))
        for block in re.split(r"\n\s*\n", inspect.cleandoc(doc))
    )


def _prose(block: str, columns: int) -> str:
    """A paragraph, or a list of items that begin with a dash."""
    items = re.split(r"\n(?=- )", re.sub(r"\n +", "\n", block).replace(" %", "\xa0%"))
    return "\n".join(_filled(item, columns, indent="  " * item.startswith("- ")) for item in items)


def _filled(text: str, columns: int, *, indent: str) -> str:
    """The text in lines, broken at spaces but not at no-break spaces, which become spaces."""
    return textwrap.fill(text, columns, subsequent_indent=indent, break_on_hyphens=False).replace("\xa0", " ")


def _commands(block: str, columns: int) -> str:
    """Indented commands as they are written; one that is wider than the terminal is continued in further lines."""
    commands = re.split(r"(?<!\\)\n", block)
    return "\n".join(
        command if all(len(line) <= columns for line in command.splitlines()) else _continued(command, columns)
        for command in commands
    )


def _continued(command: str, columns: int) -> str:
    """A command in lines that end in a backslash, each option on one line with its first value."""
    lines: list[str] = [" " * 3]
    parts = _PART.findall(command.replace("\\\n", " "))
    for part in itertools.chain.from_iterable(
        [part] if len(part) + 10 <= columns else re.findall(_WORD, part) for part in parts
    ):
        if len(f"{lines[-1]} {part} \\") > columns and lines[-1].strip():
            lines.append(" " * 7)
        lines[-1] += f" {part}"
    return " \\\n".join(lines)
