"""How a prepared model reaches its folder: whole, with a digest and a stamp, or not at all."""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_digest(name: str) -> str:
    """SHA-256 of a package's RECORD, which lists a hash of every file in it."""
    record = metadata.distribution(name).read_text("RECORD")
    if record is None:
        raise RuntimeError(f"{name} has no RECORD: was it installed by pip?")
    lines = [line for line in record.splitlines() if "__pycache__" not in line and ".dist-info/" not in line]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def digest_of(folder: Path) -> str:
    """SHA-256 over `<sha256>  <name>` of every file except digest.json and stamp.json, in name order."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("digest.json", "stamp.json")
    )
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def publish(script: Path, package: str, make: Callable[[Path], None]) -> None:
    """Run `make` in a fresh folder beside the target, then put that folder in the target's place.

    Nothing is done when the target's stamp names this script and this package already. A half-made
    folder of an earlier, killed call is removed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, named as in the registry")
    out: Path = parser.parse_args().out.resolve()

    stamp = {
        "script": sha256_of(script),
        "publish": sha256_of(Path(__file__)),
        "package": package,
        "version": metadata.version(package),
        "package_sha256": package_digest(package),
    }
    stamp_file = out / "stamp.json"
    if stamp_file.is_file() and json.loads(stamp_file.read_text()) == stamp:
        print(f"{out.name}: already made")
        return

    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    make(fresh)
    digest = digest_of(fresh)
    (fresh / "digest.json").write_text(json.dumps({"sha256": digest}) + "\n")
    (fresh / "stamp.json").write_text(json.dumps(stamp, indent=2, sort_keys=True) + "\n")
    _sync(fresh)

    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{out.name}: made, sha256 {digest}")


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
