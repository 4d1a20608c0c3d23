"""The command line of every command: options from a function's signature, help that teaches, mistakes told in a line.

A command's module imports nothing heavy. Its `main` hands a function to `run`, whose parameters become options and
whose `Args:` become their help; the function imports what it needs when it is called. So `--help`, a wrong option and a
missing file are answered before torch has begun to load.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from inspect import signature
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args

import jsonargparse
import yaml

from data.jobs.config_paths import misplaced_paths_named
from data.jobs.errors import CaptionerError, mistakes_are_common
from data.jobs.extras import extra_of
from data.jobs.inheritance import InheritanceError, flattened
from data.jobs.mistakes import (
    STOPPED,
    WRONG_INPUT,
    WRONG_OPTION,
    Wording,
    element_of,
    explained,
    is_mapping,
    kind_of,
)
from data.jobs.network import unreachable
from data.jobs.sharing import Ranks

Config = TypeVar("Config")
Own = TypeVar("Own")
Returned = TypeVar("Returned")

CONFIG = "config"
"""Name of the parameter whose fields are options of their own, instead of options that begin with its name."""


def run(
    name: str,
    function: Callable[..., Returned],
    argv: Sequence[str] | None = None,
    positional: bool = False,
    log_format: str = "%(message)s",
) -> Returned:
    """Call `function` with the options of the command line.

    Options are spelled with - or _, lists typed as `[1, 2]`, `1,2` or `1 2`. `--config FILE.yaml` reads options from a
    file, which may inherit (data.jobs.inheritance), `--print_config` shows them all and `--debug` the traceback of an
    error. A parameter named `config` that is a dataclass gives an option for each of its fields; other dataclasses give
    options that begin with the parameter's name.

    Args:
        name: The command as it is typed behind `python -m`, such as "eval.scenes".
        function: The command; the docstring of its module is the head of `--help`.
        argv: Words after the program's name; by default those of this process.
        positional: Parameters without a default are given by their place, without a name.
        log_format: Form of what the first rank logs; other ranks log errors alone.

    Returns:
        What `function` returns.

    Raises:
        SystemExit: With status 2 for wrong options; with status 1 and a message for a ValueError, OSError or
            CaptionerError of the function; with status 130 after Ctrl-C. Ranks other than the first say nothing until
            work has begun (data.jobs.errors).
    """
    words, debug = _words(argv)
    parser = _parser(name, sys.modules[function.__module__].__doc__)
    parameters = signature(function, eval_str=True).parameters
    parser.add_function_arguments(function, as_group=False, as_positional=positional, skip={CONFIG})
    if CONFIG in parameters:
        parser.add_class_arguments(parameters[CONFIG].annotation, as_group=False)
    with told(name, debug):
        values = parser.options(words)
        arguments = {key: values[key] for key in parameters if key != CONFIG}
        if CONFIG in parameters:
            arguments[CONFIG] = parser.taken(parameters[CONFIG].annotation, values)
        rank = Ranks.of_launch().rank
        logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format=log_format, datefmt="%H:%M:%S")
        warnings.filterwarnings("ignore", module="PIL")  # about single files; what is wrong with a file is counted
        with misplaced_paths_named(words):
            return function(**arguments)


def parse(
    config_class: type[Config], argv: Sequence[str] | None = None, name: str = "", description: str | None = None
) -> Config:
    """A config dataclass from the words of a command line.

    Args:
        config_class: A dataclass of dataclasses.
        argv: `--config FILE.yaml` and overrides such as `--optim.lr 2e-5`; by default the words of this process. Keys
            that the class does not have are refused.
        name: The command, for its messages.
        description: Head of `--help`.

    Raises:
        SystemExit: With status 2 for wrong options, with status 1 for a file that cannot be read.
    """
    parser = _parser(name, description)
    parser.add_class_arguments(config_class)
    with told(name):
        return parser.taken(config_class, parser.options(_words(argv)[0]))


def read_config(config_class: type[Config], path: Path) -> Config:
    """A config dataclass from the YAML file that `to_yaml` has written, by this version or an older one.

    Options that the file lacks have the values of the class's `former`, if it has such, or their defaults.

    Raises:
        ValueError: It cannot be read as this class; the message names the file.
    """
    parser = _parser("", None)
    parser.file = path
    parser.add_class_arguments(config_class)
    former = getattr(config_class, "former", {}).items()
    words = [f"--{name}={'null' if value is None else value}" for name, value in former]
    return parser.taken(config_class, parser.options([*words, "--config", str(path)]))


def parse_with(
    config_class: type[Config],
    own_class: type[Own],
    argv: Sequence[str],
    name: str = "",
    description: str | None = None,
) -> tuple[Config, Own]:
    """`parse`, with the options of a command itself, a dataclass too, beside those of the config."""
    parser = _parser(name, description)
    parser.add_class_arguments(config_class)
    parser.add_class_arguments(own_class, as_group=False)
    with told(name):
        values = parser.options(_words(argv)[0])
        return parser.taken(config_class, values), parser.taken(own_class, values)


def to_yaml(config: Any) -> str:
    """The YAML of a config dataclass that `parse` reads back to an equal one."""
    parser = _parser("", None)
    parser.add_class_arguments(type(config))
    return parser.dump(parser.parse_object(asdict(config)), skip_unset=False)


def existing(path: Path | str, option: str, what: str = "file or folder") -> Path:
    """`path` again if there is such a file or folder; to be called before anything heavy is imported.

    Args:
        path: File or folder that the user gave.
        option: Name of the option that the user typed, such as "--encoder".
        what: What was expected there, such as "folder made by train.export".

    Raises:
        ValueError: There is none.
    """
    if not Path(path).exists():
        raise ValueError(f"{option} {path}: there is no such {what}")
    return Path(path)


def underscored(argv: Sequence[str], mappings: Sequence[str] = ()) -> list[str]:
    """The words of a command line with options spelled as the fields of dataclasses are.

    Args:
        argv: Words of the command line.
        mappings: Options with mappings as values, such as "--lambda_encoders": keys behind their dot stay as they are.
    """
    words = []
    for word in argv:
        option, equals, value = word.partition("=")
        first, dot, key = option.partition(".")
        if option.startswith("--"):
            first = "--" + first[2:].replace("-", "_")
            key = key if first in mappings else key.replace("-", "_")
        words.append(first + dot + key + equals + value)
    return words


def gathered(argv: Sequence[str], lists: Mapping[str, Any], several: bool = True) -> list[str]:
    """The words of a command line with lists that were typed as they are read: --sides 1,2 and --sides 1 2 as [1, 2].

    Texts and paths, in which commas may stand, are parted by words alone: --files a.png b.png.

    Args:
        argv: Words of the command line.
        lists: Options that take lists, with their types.
        several: False where words behind an option's first value may be arguments without a name.
    """
    words = list(argv)
    found: list[str] = []
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option not in lists:
            found.append(option + equals + value)
            continue
        values = [value] if equals else []
        while words and not words[0].startswith("--") and (several or not values):
            values.append(words.pop(0))
        if len(values) == 1 and _is_list(values[0], lists[option]):
            found.append(f"{option}={values[0]}")
        elif not values:
            found.append(option + equals)
        elif element_of(lists[option]) in (int, float):
            found.append(f"{option}=[{', '.join(','.join(values).split(','))}]")
        else:
            found.append(f"{option}={json.dumps(values)}")
    return found


def _is_list(word: str, kind: Any) -> bool:
    """Whether a word stands for all of a list, [a, b] or null, and is no text such as "[a cat] on a mat"."""
    if element_of(kind) in (int, float):
        return word.lstrip().startswith("[") or word == "null"
    if word == "null":
        return NoneType in get_args(kind)
    try:
        return word.lstrip().startswith("[") and isinstance(yaml.safe_load(word), list)
    except yaml.YAMLError:
        return False


def _parser(name: str, description: str | None) -> "_Parser":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog=f"python -m {name}" if name else None,
        description=description,
        formatter_class=Wording,
        allow_abbrev=False,
        epilog="Options are spelled with - or _, lists typed 1,2 or [1, 2]. --debug shows the traceback of an error.",
    )
    parser.name = name
    parser.add_argument("--config", action="config", help="YAML file of options; those after it override it.")
    return parser


class _Parser(jsonargparse.ArgumentParser):
    """A parser that tells mistakes in a few words. jsonargparse makes further ones of its kind for parts of options."""

    name = ""
    file: Path | None = None
    """The file that is read, where it is not a command line that is wrong."""

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """The values of a file of options with all that it inherits."""
        return self.parse_string(flattened(Path(path)), *args, **kwargs)

    def options(self, words: Sequence[str]) -> Any:
        """The values of a command line, dataclasses made."""
        try:
            kinds = self._kinds()
            mappings = [option for option, kind in kinds.items() if is_mapping(kind)]
            lists = {option: kind for option, kind in kinds.items() if element_of(kind) is not None}
            num_unnamed = sum(not action.option_strings for action in self._actions)
            several = len(list(takewhile(lambda word: not word.startswith("--"), words))) >= num_unnamed
            return self.instantiate(self.parse_args(gathered(underscored(words, mappings), lists, several)))
        except InheritanceError:
            raise  # about files, and told as they are
        except ValueError as error:  # a dataclass refuses its values, or `error` has told of a file
            if self.file is not None and str(error).startswith(str(self.file)):
                raise
            self.error(str(error))

    def taken(self, kind: type[Config], values: Any) -> Config:
        """Make a dataclass of the values that are its fields; what does not fit together is a wrong option too."""
        try:
            return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in at most three lines, and exit."""
        if not self.exit_on_error:  # jsonargparse has made this parser itself, for a part of a command line
            super().error(message, ex)
        told, status = explained(message, self._kinds())
        if self.file is not None:
            raise ValueError(f"{self.file}: {told}") from ex
        _leave(self.name, told + (f"\nall options: {self.prog} --help" if status == WRONG_OPTION else ""), status)

    def _kinds(self) -> dict[str, Any]:
        """The type of each option's values."""
        return {option: kind_of(action) for option, action in self._option_string_actions.items()}


def _words(argv: Sequence[str] | None) -> tuple[list[str], bool]:
    """The words of the command line without --debug, and whether it was there."""
    words = list(sys.argv[1:] if argv is None else argv)
    return [word for word in words if word != "--debug"], "--debug" in words


@contextmanager
def told(name: str, debug: bool = False) -> Iterator[None]:
    """Within the block what a user can change is told in a few words, without a traceback.

    The first rank tells what all meet alike; once work has begun, each tells its own errors.
    """
    try:
        yield
    except (ValueError, OSError, CaptionerError) as error:
        if debug:
            raise
        _leave(name, unreachable(error) or str(error), WRONG_INPUT)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name)
        if debug or extra is None:
            raise
        _leave(name, f"{error.name} is not installed; pip install '.[{extra}]' brings it", WRONG_INPUT)
    except KeyboardInterrupt:
        if debug:
            raise
        _leave(name, "stopped", STOPPED)


def _leave(name: str, message: str, status: int) -> NoReturn:
    text = f"{name}: {message}" if name else message
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if rank and (status != WRONG_INPUT or mistakes_are_common()):
        raise SystemExit(status)  # the first rank tells it
    if rank:
        text = f"{name} (rank {rank}): {message}"
    if status == WRONG_INPUT:
        raise SystemExit(text)  # Python prints it and exits with 1
    print(text, file=sys.stderr)
    raise SystemExit(status)
