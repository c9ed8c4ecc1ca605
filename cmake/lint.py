"""Policy as tests: python3 cmake/lint.py layering|no_stdout|style|readme|self_test ROOT [COMPONENTS]

COMPONENTS is the file that CMake writes from lib/lathe/CMakeLists.txt: one line "name TORCH|PLAIN dependency ..." per component.
Prints one line per violation and exits 1 when there is any.
"""
import os
import re
import sys
import tempfile

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
TORCH_HEADERS = ("torch/", "ATen/", "c10/", "caffe2/")
PRINTING = re.compile(r"std::c(out|err|log)\b|\bf?printf\s*\(|\bputs\s*\(|\b(std::)?(exit|abort|_exit|terminate)\s*\(")
MAX_LINES = 500


def sources(root, *folders):
    for folder in folders:
        for directory, _, names in os.walk(os.path.join(root, folder)):
            for name in sorted(names):
                if name.endswith((".h", ".cc")):
                    yield os.path.join(directory, name)


def lines(path):
    with open(path, encoding="utf-8") as file:
        return file.read().split("\n")


def code_lines(path):
    """Lines without comments and string literals."""
    for number, line in enumerate(lines(path), 1):
        yield number, re.sub(r'"(\\.|[^"\\])*"', '""', line).split("//")[0]


def read_components(path):
    components = {}
    for line in lines(path):
        if line.strip():
            name, kind, *depends = line.split()
            components[name] = (kind == "TORCH", depends)
    return components


def reachable(components, name):
    seen, left = set(), [name]
    while left:
        current = left.pop()
        if current not in seen:
            seen.add(current)
            left += components[current][1]
    return seen


def layering(root, components_file):
    components = read_components(components_file)
    library = os.path.join(root, "lib", "lathe")
    for folder in sorted(os.listdir(library)):
        if os.path.isdir(os.path.join(library, folder)) and os.listdir(os.path.join(library, folder)) and folder not in components:
            yield f"lib/lathe/{folder}: a folder that lib/lathe/CMakeLists.txt does not declare"
    declared = []
    for name, (torch, depends) in components.items():
        for dependency in depends:
            if dependency not in declared:
                yield f"{name}: depends on {dependency}, which is not declared above it"
            elif components[dependency][0] and not torch:
                yield f"{name}: needs no LibTorch but depends on {dependency}, which does"
        declared.append(name)
        allowed = reachable(components, name)
        for path in sources(root, os.path.join("lib", "lathe", name)):
            for number, line in enumerate(lines(path), 1):
                found = INCLUDE.match(line)
                if not found:
                    continue
                header = found.group(1)
                place = f"{os.path.relpath(path, root)}:{number}"
                if not torch and header.startswith(TORCH_HEADERS):
                    yield f"{place}: {name} is free of LibTorch but includes {header}"
                if header.startswith("lathe/") and header.count("/") > 1 and header.split("/")[1] not in allowed:
                    yield f"{place}: {name} may not use {header.split('/')[1]}"
                if name == "nn" and header.startswith(("lathe/recipe/", "lathe/config/")):
                    yield f"{place}: recipes never reach nn"
                if header.startswith("../") or "/../" in header:
                    yield f"{place}: name headers from lib, not by {header}"


def no_stdout(root, _):
    for path in sources(root, os.path.join("lib", "lathe")):
        for number, line in code_lines(path):
            # A signal handler that ends the process on a second Ctrl-C is the one exception.
            if PRINTING.search(line) and not (path.endswith("signals.cc") and "_exit" in line):
                yield f"{os.path.relpath(path, root)}:{number}: the library never prints or exits: {line.strip()}"


def style(root, _):
    for path in sources(root, "lib", "apps", "tests"):
        place, content = os.path.relpath(path, root), lines(path)
        if len(content) > MAX_LINES:
            yield f"{place}: {len(content)} lines, at most {MAX_LINES}"
        if path.endswith(".h"):
            if not any(line == "#pragma once" for line in content):
                yield f"{place}: no #pragma once"
            if place.startswith("lib") and not any("///" in line for line in content):
                yield f"{place}: a public header without a docstring"
        for number, line in enumerate(content, 1):
            if path.endswith(".h") and re.match(r"\s*using namespace ", line):
                yield f"{place}:{number}: using namespace in a header"
            if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
                yield f"{place}:{number}: unfinished"
            if re.search(r"\bDISABLED_|GTEST_SKIP", line) and place != os.path.join("tests", "lint"):
                yield f"{place}:{number}: a test that does not run"


def readme(root, _):
    """The README shows the example that the tests run, and every recipe."""
    with open(os.path.join(root, "README.md"), encoding="utf-8") as file:
        text = file.read()
    with open(os.path.join(root, "apps", "examples", "lora_regression.cc"), encoding="utf-8") as file:
        if "```cpp\n" + file.read() + "```" not in text:
            yield "README.md: its program is not apps/examples/lora_regression.cc"
    recipes = os.path.join(root, "recipes")
    for directory, _, names in os.walk(recipes):
        for name in names:
            if name.endswith(".yaml"):
                path = os.path.relpath(os.path.join(directory, name), root)
                if f"]({path})" not in text:
                    yield f"README.md: its table lacks {path}"


def self_test(root, _):
    """Each rule finds what it is for."""
    with tempfile.TemporaryDirectory() as folder:
        def write(path, text):
            full = os.path.join(folder, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as file:
                file.write(text)
            return full
        components = write("components.txt", "base PLAIN\nnn TORCH base\ndata PLAIN base nn\n")
        write("lib/lathe/base/a.h", '#include "lathe/nn/b.h"\n#include <torch/torch.h>\n#include "../nn/b.h"\nusing namespace std;\n// TO' + 'DO\n')
        write("lib/lathe/base/a.cc", "void f() { std::cout << 1; }\n" + "\n" * MAX_LINES)
        write("lib/lathe/stray/c.cc", "int x;\n")
        write("lib/lathe/nn/b.cc", "int y;\n")
        found = "\n".join([*layering(folder, components), *no_stdout(folder, None), *style(folder, None)])
        for expected in ("base may not use nn", "name headers from lib", "is free of LibTorch but includes", "a folder that", "data: needs no LibTorch but", "never prints",
                         "no #pragma once", "without a docstring", "using namespace", "unfinished", "lines, at most"):
            if expected not in found:
                yield f"cmake/lint.py: no rule reports {expected!r}"


def main():
    rule, root, *rest = sys.argv[1:]
    violations = list({"layering": layering, "no_stdout": no_stdout, "style": style, "readme": readme, "self_test": self_test}[rule](root, rest[0] if rest else None))
    print("\n".join(violations) if violations else f"{rule}: nothing to complain about")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
