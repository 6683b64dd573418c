"""The schemas of values: each constraint refuses what it is there to refuse, and names the place.

Nothing here is a list of cases: the schemas are walked, and for each constraint a file of values that is right is made wrong at this one place.
A constraint of a kind that is not known here fails the walk, so none comes in without a test.
"""

import contextlib
import copy
import json
import os
import re
import unittest

import jsonschema
import yaml
from helm_python.errors import HelmError

from engine import CHART, LIBRARY, render, render_app

#: What a value may be where the defaults have none: lists and maps that are empty, and choices that want another one.
FILLED = {
    "helm": {"policy": {"files": {"a.yaml": "version: 1\n"}}, "monitoring": {kind: {"labels": {"a": "b"}} for kind in ("podMonitor", "prometheusRule", "dashboard")},
             "admissionPolicy": {"namespaceSelector": {"matchLabels": {"a": "b"}, "matchExpressions": []}},
             "injector": {"priorityClassName": "a", "certificates": {"mode": "existingSecret", "secret": "a", "issuer": {"name": "a"},
                          "caBundle": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"}}},
    "library": {"image": {"digest": "sha256:" + "0" * 64}, "env": [{"name": "AWS_REGION", "value": "x", "valueFrom": {}}],
                "credentials": {"secret": "a", "token": {"audience": "a"}}, "ca": {"mode": "existingSecret", "secret": "a", "extraConfigMap": "a"},
                "app": {"runtimes": ["java"], "users": [1000], "noProxy": [".a"]},
                "redirect": {"image": {"digest": "sha256:" + "0" * 64}, "ports": ["443"], "excludeCIDRs": ["10.0.0.0/8"]}},
}
#: Strings of many kinds. A pattern refuses some of them, and the value that is there with something before or behind it.
STRINGS = ["", " ", "a b", "Ä", "-", ".", "A", "a,b", "0", "1", "x" * 300, "a/b", "10.0.0.0", "10.0.0/8", "10.0.0.256/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", "010.0.0.0/8",
           "fd00::/129", "fd00:::/8", "1::2::3/8", "::ffff:10.0.0.0/104", "g::/8", "1-", "1m1", "-1s", "1 s", "sha256:0", "..", "a.txt", ".yaml", "a-", "a\nb"]
#: Constraints are these; what else stands in a schema is told of, or walked into.
WALKED = {"$schema", "title", "$ref", "definitions", "properties", "items", "if"}


def merged(base, more):
    if isinstance(base, dict) and isinstance(more, dict):
        return base | {key: merged(base.get(key), value) for key, value in more.items()}
    return copy.deepcopy(more)


def at(document, path):
    for step in path:
        document = document[step]
    return document


def put(document, path, value):
    """A copy with another value at a path."""
    document = copy.deepcopy(document)
    if not path:
        return value
    at(document, path[:-1])[path[-1]] = value
    return document


def without(document, path, key):
    document = copy.deepcopy(document)
    del at(document, path)[key]
    return document


class Walk:
    """All wrong values: (constraint's place in the schema, where it is told, values)."""

    def __init__(self, schema, values):
        self.schema, self.values, self.found = schema, values, []
        self.walk([], [])

    def wrong(self, where, constraint, path, values, given=None):
        """`given` is what a user writes so that the values are these, where that is something else."""
        self.found.append((where + [constraint], "".join(f"/{step}" for step in path), values, given or values))

    def resolve(self, where):
        schema = at(self.schema, where)
        while "$ref" in schema:
            assert set(schema) == {"$ref"}, schema
            where = schema["$ref"].removeprefix("#/").split("/")
            schema = at(self.schema, where)
        return where, schema

    def walk(self, where, path):
        where, schema = self.resolve(where)
        there = at(self.values, path)
        for constraint, wanted in schema.items():
            if constraint in WALKED:
                continue
            getattr(self, "on_" + constraint.replace("additionalProperties", "additional"))(where, path, wanted, there)
        if isinstance(there, dict):
            for key in schema.get("properties", {}):
                if key != "global":
                    assert key in there, f"{path}: {key} has no value here: add one to FILLED"
                    if key != "outgate":
                        self.walk(where + ["properties", key], path + [key])
        if "items" in schema and there:
            self.walk(where + ["items"], path + [0])

    def each(self, where, constraint, path, bad):
        assert bad, f"nothing that breaks {constraint} at {path}"
        for one in bad:
            self.wrong(where, constraint, path, put(self.values, path, one))

    def on_type(self, where, path, wanted, _):
        examples = {"object": {}, "array": [], "string": "x", "integer": 7, "number": 7.5, "boolean": True}
        allowed = [wanted] if isinstance(wanted, str) else wanted
        bad = [example for kind, example in examples.items() if kind not in allowed and not (kind == "integer" and "number" in allowed)]
        # The whole of it has to be a map for Helm itself.
        for one in bad if path else []:
            self.wrong(where, "type", path, put(self.values, path, one))

    def on_additional(self, where, path, wanted, there):
        if wanted is False:
            self.wrong(where, "additionalProperties", path, put(self.values, path + ["unknownKey"], "x"))
        else:
            self.walk(where + ["additionalProperties"], path + [next(iter(there))])

    def on_propertyNames(self, where, path, wanted, there):  # noqa: N802: the constraint's name
        (key, value), = there.items()
        for name in self.strings(wanted["pattern"], key):
            self.wrong(where, "propertyNames", [], put(self.values, path, {name: value}))

    def strings(self, pattern, there):
        bad = [one for one in (*STRINGS, f" {there}", f"{there} ", f"{there}\n", f"ä{there}", f"{there}ä") if not re.search(pattern, one)]
        assert bad, pattern
        return bad

    def on_pattern(self, where, path, wanted, there):
        self.each(where, "pattern", path, self.strings(wanted, str(there)))

    def on_required(self, where, path, wanted, _):
        for key in wanted:
            if key != "outgate":
                # Defaults are there until a null takes one away.
                given = put(self.values, path + [key], None) if not any(isinstance(step, int) for step in path) else None
                self.wrong(where, "required", path, without(self.values, path, key), given)

    def on_enum(self, where, path, wanted, _):
        self.each(where, "enum", path, [f"{wanted[0]}x", str(wanted[0]).swapcase() if str(wanted[0]).swapcase() not in wanted else ""])

    def on_minimum(self, where, path, wanted, _):
        self.each(where, "minimum", path, [wanted - 1])

    def on_maximum(self, where, path, wanted, _):
        self.each(where, "maximum", path, [wanted + 1])

    def on_minLength(self, where, path, wanted, _):  # noqa: N802
        self.each(where, "minLength", path, ["x" * (wanted - 1)])

    def on_maxLength(self, where, path, wanted, _):  # noqa: N802
        self.each(where, "maxLength", path, ["x" * (wanted + 1)])

    def on_minItems(self, where, path, wanted, there):  # noqa: N802
        self.each(where, "minItems", path, [there[:wanted - 1]])

    def on_uniqueItems(self, where, path, wanted, there):  # noqa: N802
        assert wanted is True
        self.each(where, "uniqueItems", path, [[there[0], there[0]]])

    def on_not(self, where, path, wanted, _):
        if set(wanted) == {"type", "allOf"}:
            # A list that has all of these.
            return self.each(where, "not", path, [[one["contains"]["const"] for one in wanted["allOf"]]])
        (kind, value), = wanted.items()
        assert kind == "enum", kind
        self.each(where, "not", path, value)

    def on_then(self, where, path, wanted, _):
        """Beside an `if` that the values meet."""
        for key, more in wanted["properties"].items():
            assert set(more) <= {"$ref", "minLength"}, more
            self.wrong(where, "then", path + [key], put(self.values, path + [key], ""))
        for key in wanted["required"]:
            assert key in at(self.schema, where)["required"], "a key that is absent is refused by the other `required` as well"


def go(schema):
    """As Go reads patterns: an end is the very end, and not before a last line's."""
    return json.loads(re.sub(r'("pattern": "(?:[^"\\]|\\.)*)\$"', r'\1\\\\Z"', json.dumps(schema)))


def weaker(schema, where):
    """The schema without one constraint."""
    schema = copy.deepcopy(schema)
    del at(schema, where[:-1])[where[-1]]
    return schema


@contextlib.contextmanager
def silent():
    """Helm says on standard error that no map can take the place of a map, before it refuses it."""
    kept = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Schemas(unittest.TestCase):
    def check(self, name, chart, wrap):
        schema = go(json.loads((chart / "values.schema.json").read_text()))
        values = merged(yaml.safe_load((chart / "values.yaml").read_text()), FILLED[name])
        render(CHART, wrap(values))
        jsonschema.validate(values, schema)
        walk = Walk(schema, values)
        whole, without_one, judged, asked = jsonschema.Draft7Validator(schema), {}, set(), {}
        for where, place, wrong, given in walk.found:
            with self.subTest(constraint="/".join(map(str, where)), place=place):
                # The value breaks this constraint, and would be taken without it, but for what another one of the same place says of it too.
                self.assertFalse(whole.is_valid(wrong))
                key = tuple(where)
                if key not in judged:
                    if key not in without_one:
                        without_one[key] = jsonschema.Draft7Validator(weaker(schema, where))
                    if without_one[key].is_valid(wrong):
                        judged.add(key)
                # Python has judged them all; of one place Helm gets a handful.
                asked[key, place] = asked.get((key, place), 0) + 1
                if asked[key, place] > 4:
                    continue
                with self.assertRaises(HelmError) as raised, silent():
                    render(CHART, wrap(given))
                self.assertIn(f"at '{place}'", str(raised.exception))
        return walk, judged

    def constraints(self, schema, where=()):
        """Every place of a constraint."""
        for key, value in schema.items():
            if key in ("properties", "definitions"):
                for name, one in value.items():
                    yield from self.constraints(one, (*where, key, name))
            elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
                yield from self.constraints(value, (*where, key))
            elif key not in WALKED:
                yield (*where, key)

    def judge(self, name, chart, wrap):
        walk, judged = self.check(name, chart, wrap)
        told = {tuple(where) for where, *_ in walk.found}
        every = set(self.constraints(walk.schema))
        # What Helm itself looks at: that the whole and a subchart's values are maps.
        every -= {("type",), ("properties", "global", "type"), ("properties", "outgate", "type")}
        self.assertEqual(every - told, set(), "a constraint without a wrong value")
        self.assertEqual(told - judged, set(), "a constraint that makes no difference")
        print(f"\n# {name}: {len(told)} constraints, {len(walk.found)} wrong values")
        self.assertGreater(len(told), 60)

    def test_of_the_chart(self):
        self.judge("helm", CHART, lambda values: values | {"outgate": {}})

    def test_of_the_library(self):
        self.judge("library", LIBRARY, lambda values: {"outgate": values})

    def test_a_null_takes_no_default_away(self):
        """Helm removes a default where a user writes null; what the templates read has to be there."""
        for values, place in (({"uid": None}, "'uid'"), ({"image": {"tag": None}}, "'tag'"), ({"ca": None}, "'ca'"), ({"classic": {"drain": None}}, "'drain'")):
            for chart in (lambda: render(CHART, {"outgate": values}), lambda: render_app({"outgate": values})):
                with self.assertRaises(HelmError) as raised:
                    chart()
                self.assertIn(f"missing property {place}", str(raised.exception))


if __name__ == "__main__":
    unittest.main()
