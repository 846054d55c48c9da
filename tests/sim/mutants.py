#!/usr/bin/env python3
"""Plants errors in the decision core, one at a time, and expects the simulation to find each.

    tests/sim/mutants.py [NAME...]

The errors are in mutants.toml: what is replaced, by what, in which file of src/supervisor. The core and the simulation
are copied into a small crate of their own, which builds in seconds; the checkout is not touched.
PADDOCK_MUTANTS_DIR keeps that crate between runs, PADDOCK_SIM_RUNS says how many worlds each error has to survive.
Exits 1 if an error survives or no longer fits the text.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDED = ("rand_xoshiro", "serde", "serde_json")


def crate(folder):
    """The core and its simulation, alone."""
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    lines = ['[package]\nname = "paddock"\nversion = "0.0.0"\nedition = "2024"\n\n[dependencies]']
    for name in NEEDED:
        spec = manifest["dependencies"][name]
        version = spec if isinstance(spec, str) else spec["version"]
        features = [] if isinstance(spec, str) else spec.get("features", [])
        quoted = ", ".join(f'"{feature}"' for feature in features)
        lines.append(f'{name} = {{ version = "{version}", features = [{quoted}] }}')
    lines.append('\n[[test]]\nname = "sim"\npath = "tests/sim/main.rs"\n\n[profile.dev]\ndebug = 0\n')
    (folder / "src/config").mkdir(parents=True, exist_ok=True)
    (folder / "Cargo.toml").write_text("\n".join(lines))
    shutil.copy(ROOT / "Cargo.lock", folder / "Cargo.lock")
    (folder / "src/lib.rs").write_text("pub mod config {\n    pub mod model;\n}\npub mod supervisor;\n")
    shutil.copy(ROOT / "src/config/model.rs", folder / "src/config/model.rs")
    for part in ("src/supervisor", "tests/sim"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(ROOT / part, folder / part)


def simulate(folder):
    """None if the simulation passes, else the first thing that it says; an error that does not build is no error."""
    env = {"PADDOCK_SIM_RUNS": "3000", **os.environ, "RUST_BACKTRACE": "0"}
    env.pop("PADDOCK_SIM_REPLAY", None)
    build = subprocess.run(
        ["cargo", "test", "--quiet", "--no-run"], cwd=folder, env=env, capture_output=True, text=True
    )
    if build.returncode:
        raise SystemExit(f"it does not build:\n{build.stderr[-3000:]}")
    try:
        # An error that makes the core run in circles is found, too.
        test = subprocess.run(
            ["cargo", "test", "--quiet", "--test", "sim"],
            cwd=folder, env=env, capture_output=True, text=True, timeout=300,
        )
    except subprocess.TimeoutExpired:
        return "it never ended"
    if test.returncode == 0:
        return None
    lines = test.stdout.splitlines() + test.stderr.splitlines()
    for number, line in enumerate(lines):
        if "panicked at" in line and number + 1 < len(lines):
            return lines[number + 1]
    return lines[-1] if lines else "it failed"


def main():
    mutants = tomllib.loads((ROOT / "tests/sim/mutants.toml").read_text())["mutant"]
    wanted = set(sys.argv[1:])
    kept = os.environ.get("PADDOCK_MUTANTS_DIR")
    folder = pathlib.Path(kept or tempfile.mkdtemp(prefix="paddock-mutants-"))
    survived, killed, misfits = [], 0, []
    begin = time.monotonic()
    try:
        crate(folder)
        if why := simulate(folder):
            raise SystemExit(f"the simulation fails without any error planted: {why}")
        for mutant in mutants:
            name = mutant["name"]
            if wanted and name not in wanted:
                continue
            file = folder / "src/supervisor" / mutant["file"]
            text = file.read_text()
            if text.count(mutant["old"]) != 1:
                misfits.append(name)
                print(f"MISFIT    {name}: its text occurs {text.count(mutant['old'])} times", flush=True)
                continue
            file.write_text(text.replace(mutant["old"], mutant["new"]))
            try:
                why = simulate(folder)
            finally:
                file.write_text(text)
            if why is None:
                survived.append(name)
                print(f"SURVIVED  {name}", flush=True)
            else:
                killed += 1
                print(f"killed    {name}: {why[:110]}", flush=True)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{killed} killed, {len(survived)} survived, {len(misfits)} do not fit, {time.monotonic() - begin:.0f} s")
    sys.exit(1 if survived or misfits else 0)


if __name__ == "__main__":
    main()
