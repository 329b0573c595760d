"""Random numbers by key: the same on every machine, and each purpose in the source keeps its own.

Strings in keys are data: changing one changes what is trained or generated. So the source is read for the form of every key, and
the table pins a value for each. A form is the key's parts: strings as they are, _ for any other part, * for any number of them.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from transfusion import rng

SOURCE = Path(__file__).parent.parent / "src" / "transfusion"

PINNED: dict[tuple[str, ...], float] = {
    ("*",): 0.9391583534935474,
    ("_", "_"): 0.8856942450989059,
    ("_", "_", "_"): 0.47727081284887357,
    ("_", "_", "_", "*"): 0.9805282572806323,
    ("_", "_", "_", "_"): 0.3697360219621198,
    ("_", "_", "_", "crop", "_", "_"): 0.6964945006549601,
    ("_", "_", "_", "drop"): 0.2216841741744215,
    ("_", "_", "_", "dual"): 0.006150919095565597,
    ("_", "_", "_", "order"): 0.6562050387500251,
    ("_", "_", "_", "pack"): 0.6887790565052745,
    ("_", "_", "_", "target"): 0.11749695093740573,
    ("_", "_", "_", "varied"): 0.5155090873763418,
    ("_", "_", "_", "view", "_"): 0.9854643829999685,
    ("_", "_", "_", "wording", "_"): 0.47847097691404444,
    ("_", "_", "dropout"): 0.02436361644222249,
    ("_", "_", "order"): 0.7721180500247279,
    ("_", "_", "revive"): 0.8965120213044404,
    ("_", "alternating"): 0.5341775098065049,
    ("_", "bend"): 0.020983557091847824,
    ("_", "bootstrap"): 0.7581676229442709,
    ("_", "crop"): 0.6737627703260777,
    ("_", "digit"): 0.4478479402265264,
    ("_", "emoji", "_"): 0.9507716152242992,
    ("_", "flip"): 0.33694423503961873,
    ("_", "item", "_", "*"): 0.8680638131268049,
    ("_", "item", "_", "code", "_"): 0.5890827570295718,
    ("_", "item", "_", "noise"): 0.4811757901711829,
    ("_", "item", "_", "step", "_"): 0.5546973748017491,
    ("_", "judge"): 0.20514354803564822,
    ("_", "judge", "_"): 0.2957735801016163,
    ("_", "judge moves", "_"): 0.7079552726955729,
    ("_", "kernel distance", "_"): 0.9173806544435129,
    ("_", "learned documents"): 0.9975604519222022,
    ("_", "lora"): 0.06211608710933622,
    ("_", "measured"): 0.8004014404432183,
    ("_", "noise"): 0.6536732859541123,
    ("_", "posterior"): 0.6612074885498957,
    ("_", "preference"): 0.02344961115949343,
    ("_", "preference", "_"): 0.9244239438888681,
    ("_", "rows"): 0.21183538941252078,
    ("_", "start", "_"): 0.44657388545489013,
    ("_", "time"): 0.4486112913956185,
    ("_", "token", "_"): 0.8810364897359735,
    ("_", "unseen"): 0.04581967863697832,
    ("_", "weights"): 0.15141092843698006,
    ("actions", "*"): 0.08366487523220344,
    ("actions", "held out", "_", "_"): 0.6567476421636433,
    ("checker", "_", "_"): 0.9641688529684733,
    ("checker", "_", "_", "_"): 0.6805445866859186,
    ("clip", "_", "_"): 0.5061345321669793,
    ("clips", "held out", "_", "_"): 0.1659832970394763,
    ("coco", "prompts", "_"): 0.9517351443511413,
    ("data", "*"): 0.021417815774993416,
    ("digits", "held out"): 0.49641164280369704,
    ("emoji", "held out", "_"): 0.2192774924322563,
    ("evaluate", "_"): 0.2604244995264081,
    ("images", "held out", "_"): 0.7037300156813253,
    ("jackknife",): 0.8721295041255814,
    ("judge", "held out", "_"): 0.0028055895324028374,
    ("measure", "_"): 0.08741289122315642,
    ("path", "*", "_"): 0.7403757463673144,
    ("scene", "_", "*"): 0.1872043607784106,
    ("scene", "_", "checker", "_", "_"): 0.5314713311991313,
    ("scene", "_", "sample", "_"): 0.7313053182336327,
    ("scene", "_", "score", "_", "_"): 0.6031676252483831,
    ("scene", "_", "train", "_"): 0.907253884414079,
    ("scenes", "held out", "*"): 0.619767816709413,
    ("score", "_", "_", "_"): 0.18799272357044663,
    ("step", "_"): 0.13030318680511013,
    ("survey",): 0.6182934177306431,
    ("train", "_", "_"): 0.06970985756023088,
    ("_", "process", "_"): 0.653379373717234,
}
KEY = 8385637104377059255
PERMUTATION = [4, 3, 6, 5, 1, 0, 7, 2]
NORMAL = [[-0.4529256820678711, 2.6712799072265625], [-1.1705892086029053, -1.4496431350708008]]


def form(call: ast.Call) -> tuple[str, ...]:
    def part(node: ast.expr) -> str:
        if isinstance(node, ast.Starred):
            return "*"
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "_"

    return tuple(part(node) for node in call.args)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of rng.key and rng.uniform; a function with a parameter `rng` has a generator of numpy's."""
    if isinstance(tree, ast.FunctionDef) and "rng" in {a.arg for a in (*tree.args.args, *tree.args.kwonlyargs)}:
        return
    for node in ast.iter_child_nodes(tree):
        yield from calls(node)
    if isinstance(tree, ast.Call) and ast.unparse(tree.func) in ("rng.key", "rng.uniform"):
        yield tree


def helpers(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, tuple[str, ...]]]:
    """Functions that pass their own *parts on into a key, and the form of that key."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.args.vararg:
            for call in calls(function):
                if any(isinstance(a, ast.Starred) and ast.unparse(a.value) == function.args.vararg.arg for a in call.args):
                    yield function, form(call)


def uses(tree: ast.AST, name: str) -> bool:
    """Whether a file defines or imports a name."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return name in names | {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}


def forms() -> set[tuple[str, ...]]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py") if path.name != "rng.py"]
    found = {form(call) for tree in trees for call in calls(tree)}
    for home in trees:
        for helper, key in helpers(home):
            method = helper.args.args[:1] and helper.args.args[0].arg == "self"
            nested = not method and helper not in ast.iter_child_nodes(home)
            for tree in [home] if nested else [tree for tree in trees if method or uses(tree, helper.name)]:
                for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                    name = call.func.attr if method and isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
                    parts = form(call)[len(helper.args.args) - bool(method) :]
                    if name == helper.name and set(parts) - {"_", "*"}:
                        found.add(tuple(p for k in key for p in (parts if k == "*" else (k,))))
    return found


def sample(parts: tuple[str, ...]) -> list[rng.KeyPart]:
    """Parts for a form: the numbers of their places where it leaves them open, "a" and "b" for any number of them."""
    values: list[rng.KeyPart] = []
    for index, part in enumerate(parts):
        values += ["a", "b"] if part == "*" else [index if part == "_" else part]
    return values


def test_every_form_of_key_is_pinned_and_every_pinned_form_is_used() -> None:
    assert forms() == set(PINNED)


@pytest.mark.parametrize("parts", PINNED, ids=" ".join)
def test_a_purpose_keeps_its_draw(parts: tuple[str, ...]) -> None:
    assert rng.uniform(*sample(parts)) == PINNED[parts] == rng.key(*sample(parts)) / 2**63


def test_streams_of_a_key() -> None:
    key = rng.key(0, "noise", 1)
    assert key == KEY and rng.generator(key).permutation(8).tolist() == PERMUTATION
    noise = rng.normal([key, rng.key(1), key], (2, 2))
    assert noise.shape == (3, 2, 2) and noise[0].equal(noise[2]) and not noise[0].equal(noise[1])
    assert torch.equal(noise[0], torch.tensor(NORMAL)) and noise[:1].equal(rng.normal([key], (2, 2)))


def test_parts_keep_their_type_and_order() -> None:
    assert len({rng.key(*parts) for parts in [(1, 2), (2, 1), ("1", 2), (12,), (), (1, 2, "")]}) == 6
    assert all(0 <= rng.uniform("u", i) < 1 for i in range(1000))


def test_numpys_whole_numbers_are_those_of_python() -> None:
    assert rng.key(1, "a", 3) == rng.key(np.int64(1), "a", np.uint8(3)) != rng.key("1", "a", 3)
