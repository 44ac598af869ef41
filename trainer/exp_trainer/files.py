"""Directories that exist whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling; when the block succeeds, sync it and rename it to `target`.

    An older `target` is moved aside first and removed last. A failed block leaves nothing behind; a killed
    process leaves a `.part-` sibling, which the next call for the same target removes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.part-*"):
        shutil.rmtree(stale, ignore_errors=True)
    part = target.parent / f".{target.name}.part-{uuid.uuid4().hex[:8]}"
    part.mkdir()
    try:
        yield part
        sync_tree(part)
        old = target.parent / f".{target.name}.part-{uuid.uuid4().hex[:8]}"
        if target.exists():
            target.rename(old)
        part.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync_tree(directory: Path) -> None:
    """Flush every file of a flat directory, then the directory itself."""
    for file in directory.iterdir():
        _sync(file)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
