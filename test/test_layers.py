"""The rules of the design that a program can check: layers, the owner of the half pixel, no print, docstrings."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keypoint_detection"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# The higher a number, the more a module may import. A folder's number holds for all that is in it.
# What is not listed is of layer 2: it uses the parts below, and the command line uses it.
LAYERS = {
    "errors": 0, "files": 0, "allocator": 0, "batch": 0, "heatmaps": 0, "peaks": 0, "plateaus": 0, "subpixel": 0,
    "visualization": 0, "picture_layout": 0, "markers": 0, "curves": 0, "wording": 0, "log_names": 0, "version": 0,
    "data": 1, "models": 1, "metrics": 1,
    "cli": 3, "__init__": 3, "__main__": 3,
}  # fmt: skip


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def part_of(module):
    """The first name below the package: `keypoint_detection.data.images` is part of `data`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer(part):
    return LAYERS.get(part, 2)


def internal_imports(path):
    """Modules of this package that a file imports, with the line; those for type checkers are no dependency.

    Nor is what a file does when it is started as a program.
    """
    tree = TREES[path]
    skipped = ("TYPE_CHECKING", "__name__ == '__main__'")
    elsewhere = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in skipped
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in elsewhere:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            # `from keypoint_detection import heatmaps` imports a module, not the package's own names.
            inside = node.module == PACKAGE.name
            names = [f"{node.module}.{alias.name}" for alias in node.names] if inside else [node.module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                yield name, node.lineno


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path):
    part = part_of(module_name(path))
    for imported, line in internal_imports(path):
        target = part_of(imported)
        if target == part:
            continue
        allowed = layer(target) < layer(part) or (layer(target) == layer(part) and layer(part) in (0, 2))
        assert allowed, f"{path}:{line}: {part} (layer {layer(part)}) imports {target} (layer {layer(target)})"


@pytest.mark.parametrize("place", [lambda module: module, part_of], ids=["modules", "packages"])
def test_no_import_goes_round_in_a_circle(place):
    edges = {place(module_name(path)): set() for path in FILES}
    for path in FILES:
        name = place(module_name(path))
        edges[name] |= {place(imported) for imported, _ in internal_imports(path)} & edges.keys() - {name}
    while edges:
        free = [name for name, targets in edges.items() if not targets & edges.keys()]
        assert free, f"a circle among {sorted(edges)}"
        for name in free:
            del edges[name]


def is_half(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return (
            isinstance(node.left, ast.Constant)
            and isinstance(node.right, ast.Constant)
            and (node.right.value == 2 * node.left.value)
        )
    return isinstance(node, ast.Constant) and node.value == 0.5


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "heatmaps.py"], ids=module_name)
def test_only_heatmaps_adds_half_a_pixel(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            halves = [side for side in (node.left, node.right) if is_half(side)]
            assert not halves, f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_print_and_no_swallowed_error(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "cli.py":
            assert node.func.id != "print", f"{path}:{node.lineno}: use logging"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: name the exceptions"
            assert not all(isinstance(s, ast.Pass) for s in node.body), f"{path}:{node.lineno}: says nothing"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_text_files_are_not_read_and_written_as_the_locale_says(path):
    opens = ("open", "read_text", "write_text", "NamedTemporaryFile")
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in opens:
            continue
        if ast.unparse(node.func) in ("os.open", "Image.open"):
            continue
        binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in node.args)
        named = binary or any(keyword.arg == "encoding" for keyword in node.keywords)
        assert named, f"{path}:{node.lineno}: {ast.unparse(node)} names no encoding"


def public_definitions(tree):
    """Functions and classes of a module and methods of its classes whose names do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    child
                    for child in node.body
                    if isinstance(child, ast.FunctionDef) and not child.name.startswith("_")
                )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_public_names_have_docstrings_and_types(path):
    assert ast.get_docstring(TREES[path]) or not TREES[path].body, f"{path} has no docstring"
    for node in public_definitions(TREES[path]):
        decorators = {ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])}
        assert ast.get_docstring(node) or "overload" in decorators, (
            f"{path}:{node.lineno}: {node.name} has no docstring"
        )
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{path}:{node.lineno}: {node.name} does not say what it returns"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_fit_a_head_and_a_screen(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{path} is longer than 300 lines"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            length = body[-1].end_lineno - body[0].lineno + 1
            assert length <= 60, f"{path}:{node.lineno}: {node.name} has {length} lines"
