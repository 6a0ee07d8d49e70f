"""Pages of the reference: one for each public name and for each command, written from the code itself."""

import ast
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bayes_lora.experiments.command_line.late_help import filled
from bayes_lora.experiments.command_line.main import COMMANDS, command_function, load_command

PACKAGES = ("bayes_lora", "bayes_lora.models", "bayes_lora.inference", "bayes_lora.inference.diagnostics")


@dataclass(frozen=True)
class PublicName:
    """A name in `__all__` of a package.

    Attributes:
        package: what it is imported from.
        name: as it stands there.
        origin: dotted path of its definition, which mkdocstrings reads.
        docstring: its own, not one that it inherits; "" where it has none.
    """

    package: str
    name: str
    origin: str
    docstring: str

    @property
    def page(self) -> str:
        """Path of its page below the documentation's folder."""
        return f"reference/{self.package}/{self.name.strip('_')}.md"

    @property
    def summary(self) -> str:
        """First paragraph of its docstring, on one line."""
        return " ".join(self.docstring.split("\n\n")[0].split())


def public_names(package: str) -> list[PublicName]:
    """The names in `__all__` of a package, in their order there."""
    module = importlib.import_module(package)
    return [_public_name(package, name, getattr(module, name)) for name in module.__all__]


def undocumented() -> list[str]:
    """The public names that have no docstring of their own."""
    found = [public for package in PACKAGES for public in public_names(package)]
    return [f"{public.package}.{public.name}" for public in found if not public.docstring]


def _public_name(package: str, name: str, value: Any) -> PublicName:
    if inspect.isclass(value) or inspect.isfunction(value):
        own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        return PublicName(package, name, f"{value.__module__}.{value.__qualname__}", inspect.cleandoc(own or ""))
    module = _defining_module(package, name)
    return PublicName(package, name, f"{module}.{name}", _constant_docstring(module, name))


def _defining_module(package: str, name: str) -> str:
    """The module that assigns a constant: the package, or the one that it imports the constant from."""
    for node in _source(package).body:
        if isinstance(node, ast.ImportFrom) and any(name == (alias.asname or alias.name) for alias in node.names):
            return str(node.module)
    return package


def _constant_docstring(module: str, name: str) -> str:
    """The string that stands below the assignment of a constant."""
    body = _source(module).body
    for node, following in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in {getattr(target, "id", None) for target in targets} and isinstance(following, ast.Expr):
            value = following.value
            return inspect.cleandoc(str(value.value)) if isinstance(value, ast.Constant) else ""
    return ""


def _source(module: str) -> ast.Module:
    return ast.parse(Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8"))


def name_page(public: PublicName) -> str:
    """The page of one name; mkdocstrings fills it from the docstring."""
    full = f"{public.package}.{public.name}"
    return f'---\ntitle: "{public.name}"\n---\n\n::: {public.origin}\n    options:\n      heading: "{full}"\n'


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command.

    Attributes:
        names: as they are typed; that of an argument in capitals.
        is_option: whether it begins with dashes.
        takes: what is written after it; "" for a flag.
        default: "" where there is none.
        summary: what its help says.
    """

    names: tuple[str, ...]
    is_option: bool
    takes: str
    default: str
    summary: str


def commands() -> dict[str, Callable[..., None]]:
    """The functions behind the commands of `bayes-lora`, by name."""
    return {name: command_function(name) for name in COMMANDS}


def parameters(name: str) -> list[Parameter]:
    """What a command takes: names, defaults and help as click has them, types from the function's annotations."""
    hints, found = get_type_hints(commands()[name]), []
    command: Any = load_command(name)
    for known in command.params:
        is_option = known.param_type_name == "option"
        names = tuple(known.opts) if is_option else (known.name.upper(),)
        default = "" if known.default is None or hints[known.name] is bool else str(known.default)
        found.append(Parameter(names, is_option, _takes(hints[known.name]), default, filled(known.help or "")))
    return found


def _takes(kind: Any) -> str:
    """What an option of this type is given, in a word."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    kind = next(part for part in (*get_args(kind), kind) if part is not type(None))  # of "int | None", int
    return {bool: "", int: "integer", float: "number", Path: "path"}.get(kind, "text")


def command_page(name: str) -> str:
    """A command's arguments and options, with types and defaults."""
    known = parameters(name)
    arguments = [parameter for parameter in known if not parameter.is_option]
    usage = " ".join(["bayes-lora", name, *(argument.names[0] for argument in arguments), "[OPTIONS]"])
    title = f"bayes-lora {name}"
    parts = [
        f'---\ntitle: "{title}"\n---\n\n# {title}\n\n{inspect.getdoc(commands()[name])}\n\n```text\n{usage}\n```\n'
    ]
    if arguments:
        parts.append(_table(["argument", "is"], [[f"`{a.names[0]}`", _cell(a.summary)] for a in arguments]))
    rows = [
        [
            ", ".join(f"`{name}`" for name in option.names),
            option.takes,
            f"`{option.default}`" if option.default else "",
            _cell(option.summary),
        ]
        for option in known
        if option.is_option
    ]
    parts.append(_table(["option", "takes", "default", "is"], rows))
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str | None) -> str:
    """Help as a cell of a table: a backslash keeps a bracket from rich, which reads help as markup."""
    return (text or "").replace("\\[", "[").replace("|", "\\|").replace("<", "&lt;")


def pages() -> Iterator[tuple[str, str, str]]:
    """Section of the menu, path and text of every page of the reference, the overview first."""
    names = {package: public_names(package) for package in PACKAGES}
    known = commands()
    yield "", "reference/index.md", _overview(names, known)
    for package, found in names.items():
        yield from ((package, public.page, name_page(public)) for public in found)
    for name in known:
        yield "Command line", f"reference/command-line/{name}.md", command_page(name)


def _overview(names: dict[str, list[PublicName]], known: dict[str, Callable[..., None]]) -> str:
    parts = ["# Reference\n\nEvery public name, and every command. Anything else may change without notice.\n"]
    for package, found in names.items():
        rows = [[f"[`{p.name}`]({p.page.removeprefix('reference/')})", _cell(p.summary)] for p in found]
        parts += [f"## {package}\n", _table(["name", "is"], rows)]
    rows = [[f"[`bayes-lora {name}`](command-line/{name}.md)", _cell(inspect.getdoc(f))] for name, f in known.items()]
    return "\n".join([*parts, "## Command line\n", _table(["command", "does"], rows)])
