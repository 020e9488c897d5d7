"""YAML as configurations use it: plain values, no surprises.

PyYAML's safe loader makes no objects but plain ones. Beyond that, this one takes time and memory in proportion to the
text (aliases expand to a bounded number of values, "billion laughs" is refused), refuses a key given twice, of which it
would keep one in silence, and reads `1e4` as the number that YAML 1.2 and every other program take it for.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_CHARACTERS = 2**20
MOST_VALUES = 10_000
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """The safe loader; a key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        yaml.YAMLError: no YAML, more than one document, a tag other than of plain values, or more than the bounds.
        ValueError: a value that looks like a number or a date and is none.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {MOST_CHARACTERS} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_many(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # of explicit tags on other texts, such as !!int ''
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from error
    finally:
        loader.dispose()


def _refuse_many(root: yaml.Node) -> None:
    """Count values, an alias as all that it stands for."""
    count = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {MOST_VALUES} values")
        if isinstance(node, yaml.MappingNode):
            waiting += [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
