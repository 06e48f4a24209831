"""A policy on the model hub without its weights: what `lithe explain` looks at, in seconds instead of gigabytes.

Configuration, statistics and tokenizer are downloaded. Of the weights only the header is asked for; a file with that
header, and a hole in place of all values, stands in for them in a folder that is gone afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lithe.checkpoint import CARD
from lithe.source import NOT_DOWNLOADED, WEIGHTS, Source, first_line, resolve


@contextmanager
def opened(source: str | Path, revision: str | None = None) -> Iterator[Source]:
    """As `source.resolve`, but of a hub's policy the values of its weights may be missing. Raises ValueError."""
    if Path(source).exists():
        yield resolve(source, revision)
        return
    place = resolve(source, revision, without=[*NOT_DOWNLOADED, WEIGHTS, "model-*.safetensors"])
    if (place.folder / WEIGHTS).is_file() or (place.folder / CARD).is_file():
        yield place  # there from an earlier load; or lithe's own, of which nothing but the card is looked at
        return
    with TemporaryDirectory(prefix="lithe-preview-") as home:
        folder = Path(home) / place.folder.name
        shutil.copytree(place.folder, folder)
        _stand_in(folder / WEIGHTS, _tensors(place))
        yield Source(folder, place.name, place.revision)


def _tensors(place: Source) -> dict[str, Any]:
    from huggingface_hub import parse_safetensors_file_metadata

    try:
        return parse_safetensors_file_metadata(place.name, WEIGHTS, revision=place.revision).tensors
    except Exception as error:  # of the hub's client, of its parser, or of whichever library it asks the network with
        raise ValueError(
            f"the model hub did not give the header of {WEIGHTS} of {place.name} ({first_line(error)}): lithe reads "
            "policies that have their weights in this one file"
        ) from error


def _stand_in(path: Path, tensors: dict[str, Any]) -> None:
    header = {
        key: {"dtype": about.dtype, "shape": list(about.shape), "data_offsets": list(about.data_offsets)}
        for key, about in tensors.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + max((about.data_offsets[1] for about in tensors.values()), default=0))
