"""Teaches papermill to write parameters in Rust.

papermill runs notebooks with any kernel, but can write parameters only in languages that it has a translator for. Importing this
module adds one for Rust; installed, it is imported whenever papermill starts.

A parameter keeps the type that the cell tagged `parameters` gives it: `-p batch_size 16` stays a `usize` if it was one.
"""
import json
import re

from papermill.exceptions import PapermillException
from papermill.models import Parameter
from papermill.translators import Translator, papermill_translators


class RustTranslator(Translator):
    """Writes values as Rust expressions."""

    @classmethod
    def codify(cls, parameters, comment="Parameters"):
        lines = [cls.comment(comment)]
        for name, value in parameters.items():
            # The first assignment fixes the type, so the new value must have the same type.
            lines.append(f"let {name} = {{ let mut same = {name}; same = {cls.translate(value)}; same }};")
        return "\n".join(lines) + "\n"

    @classmethod
    def comment(cls, text):
        return f"// {text}"

    @classmethod
    def translate_none(cls, value):
        return "None"

    @classmethod
    def translate_bool(cls, value):
        return "true" if value else "false"

    @classmethod
    def translate_int(cls, value):
        return str(value)

    @classmethod
    def translate_float(cls, value):
        if value != value:
            return "(0.0 / 0.0)"
        if value in (float("inf"), float("-inf")):
            return "(1.0 / 0.0)" if value > 0 else "(-1.0 / 0.0)"
        # Python's notation, such as `1e-05` and `0.5`, is valid Rust.
        return repr(float(value))

    @classmethod
    def translate_str(cls, value):
        # Fits `&str`, `String`, `PathBuf` and `Option<&str>`.
        return f"{cls.quote(value)}.into()"

    @classmethod
    def translate_list(cls, value):
        return f"vec![{', '.join(cls.translate(item) for item in value)}]"

    @classmethod
    def translate_dict(cls, value):
        raise PapermillException("a Rust notebook can't have dictionaries as parameters: give each value its own name")

    @classmethod
    def inspect(cls, parameters_cell):
        """Returns the variables of the cell tagged `parameters`, which papermill lists and checks names against."""
        found = re.findall(r"^\s*let\s+(?:mut\s+)?(\w+)\s*(?::\s*([^=]+?))?\s*=\s*(.*?);\s*(?://\s*(.*))?$",
                           parameters_cell["source"], re.M)
        return [Parameter(name, kind or "None", value, note) for name, kind, value, note in found]

    @staticmethod
    def quote(text):
        escaped = json.dumps(str(text), ensure_ascii=False)
        # JSON and Rust escape control characters differently.
        pairs = {"\\b": "\\u{8}", "\\f": "\\u{c}"}
        out, rest = "", escaped
        while rest:
            if rest.startswith("\\u"):
                out, rest = out + "\\u{" + rest[2:6] + "}", rest[6:]
            elif rest.startswith("\\"):
                out, rest = out + pairs.get(rest[:2], rest[:2]), rest[2:]
            else:
                out, rest = out + rest[0], rest[1:]
        return out.replace("\x7f", "\\u{7f}")


papermill_translators.register("rust", RustTranslator)
