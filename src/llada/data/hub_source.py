"""Data sets that the Hugging Face library reads, as sources of a corpus."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada.data.copies import pieces_of_texts
from llada.data.pieces import Piece
from llada.system.errors import UserError, first_line


@dataclass(frozen=True)
class HubSource:
    """A data set that the Hugging Face library reads, streamed: from the hub, or from a folder."""

    name: str
    split: str
    text_key: str

    size: None = None

    def pieces(self, size: int, folder: Path) -> Iterator[Piece]:
        return pieces_of_texts(self.name, self._rows(), self.text_key, size, folder)

    def check(self) -> None:
        """Accept it: only its library knows whether it changes."""

    def identity(self) -> dict[str, Any]:
        return {"hub": [self.name, self.split]}

    def provenance(self) -> dict[str, Any]:
        return {"kind": "hub", "name": self.name, "split": self.split}

    def _rows(self) -> Iterator[str | None]:
        try:
            datasets = importlib.import_module("datasets")
        except ImportError:
            raise UserError(
                f"The library datasets reads {self.name}: `pip install datasets` (the extra hub), or name files."
            ) from None
        try:
            if (Path(self.name) / "dataset_info.json").is_file() or (Path(self.name) / "dataset_dict.json").is_file():
                loaded = datasets.load_from_disk(self.name)
                rows = (loaded[self.split] if isinstance(loaded, dict) else loaded).to_iterable_dataset()
            else:
                rows = datasets.load_dataset(self.name, split=self.split, streaming=True)
            for row in rows:
                if self.text_key not in row:
                    columns = ", ".join(map(str, row))
                    raise UserError(
                        f"{self.name} has no column {self.text_key!r} (its columns: {columns}): choose one by "
                        "`text_key`."
                    )
                text = row[self.text_key]
                if not isinstance(text, str | None):
                    raise UserError(
                        f"The column {self.text_key!r} of {self.name} holds {type(text).__name__}, not text: choose "
                        "another `text_key`."
                    )
                yield text
        except UserError:
            raise
        except Exception as error:  # the library passes on those of its HTTP client and of its file readers
            raise UserError(
                f"The data set {self.name} cannot be read ({first_line(error)}): check its name, its split and the "
                "network."
            ) from error
