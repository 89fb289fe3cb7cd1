"The security gate: what may not appear in the package, found in the syntax tree, so no alias hides it."
import ast
from collections.abc import Iterator

MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "builtins.eval", "builtins.exec", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "torch.load", "torch.save", "torch.jit.load", "torch.serialization.load",
    "torch.hub.load", "torch.package.PackageImporter", "pandas.read_pickle", "numpy.core.multiarray.fromstring",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader", "yaml.CUnsafeLoader",
}


def aliases(tree: ast.AST) -> dict[str, str]:
    "local name → what it stands for, from every import in the file"
    known = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for a in names: known[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for a in names: known[a.asname or a.name] = f"{module}.{a.name}"
    return known


def dotted(node: ast.AST, known: dict[str, str]) -> str | None:
    "`np.load` → `numpy.load`; None for what is not a plain dotted name"
    match node:
        case ast.Name(id=name): return known.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            base = dotted(value, known)
            return f"{base}.{attr}" if base else None
    return None


def is_false(node: ast.expr) -> bool: return isinstance(node, ast.Constant) and node.value is False


def forbidden(source: str) -> Iterator[tuple[int, str]]:
    "(line, what) for everything in `source` that could run code from a file or a string"
    tree = ast.parse(source)
    known = aliases(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, a.name) for a in names if a.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                if module.split(".")[0] in MODULES: yield node.lineno, module
                yield from ((node.lineno, f"{module}.{a.name}") for a in names if f"{module}.{a.name}" in CALLS)
            case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
                if (name := dotted(node, known)) in CALLS: yield node.lineno, str(name)
            case ast.Call(func=func, args=args, keywords=keywords):
                options = {k.arg: k.value for k in keywords}
                if "allow_pickle" in options and not is_false(options["allow_pickle"]): yield node.lineno, "allow_pickle"
                if "shell" in options and not is_false(options["shell"]): yield node.lineno, "shell=True"
                if dotted(func, known) == "__import__" or (
                        dotted(func, known) == "importlib.import_module" and args
                        and isinstance(args[0], ast.Constant) and str(args[0].value).split(".")[0] in MODULES):
                    yield node.lineno, ast.unparse(node)
                if dotted(func, known) == "numpy.load" and len(args) > 2: yield node.lineno, "numpy.load with positional options"
