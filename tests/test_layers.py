"""The house: a file imports only from groups above its own (smaller number), plus its own package."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "diffusion"
GROUPS = {
    "": 0, "support": 0,
    "noise": 1,
    "nets": 2, "denoiser": 2,
    "pictures": 3, "likelihood": 3,
    "guidance": 4, "samplers": 4,
    "loss": 5, "metrics": 5, "bench": 5,
    "generation": 6,
    "editing": 7,
    "judging": 8,
    "training": 9,
    "options": 10,
    "commands": 11,
    "cli": 12, "sagemaker": 12, "notebook": 12, "__main__": 13,
}  # fmt: skip
NEVER = {("nets", "noise"), ("samplers", "nets")}


def house_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Absolute names of the project's modules that a file imports, at any depth of it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module and node.module.split(".")[0] == "diffusion":
                inside = ROOT.joinpath(*node.module.split(".")[1:])
                for alias in node.names:
                    is_module = (inside / f"{alias.name}.py").exists() or (inside / alias.name).is_dir()
                    found.add(f"{node.module}.{alias.name}" if is_module else node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "diffusion"}
            assert not any(a.name.startswith("lightning.") for a in node.names), f"{path}: use pytorch_lightning"
    return found


def broken(path: Path) -> list[str]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = "" if parts == ("__init__",) else parts[0]
    if own == "data":
        allowed = {"data", "support", ""}
        return [m for m in imports(path) if house_of(m) not in allowed]
    return [
        m
        for m in imports(path)
        if house_of(m) != own
        and (house_of(m) == "data" and GROUPS[own] < 6 or house_of(m) != "data" and GROUPS[house_of(m)] >= GROUPS[own])
        or (own, house_of(m)) in NEVER
    ]


def test_every_file_imports_downwards_only():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 30
    wrong = {str(p.relative_to(ROOT)): b for p in files if (b := broken(p))}

    assert wrong == {}


def test_the_walk_sees_a_forbidden_import(tmp_path):
    bad = ROOT / "nets" / "attention_unet.py"
    text = bad.read_text() + "\nfrom diffusion.noise import Linear\n"
    probe = tmp_path / "probe.py"
    probe.write_text(text)
    assert "diffusion.noise" in imports(probe)
