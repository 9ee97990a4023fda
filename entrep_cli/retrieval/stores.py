"""A gallery in Milvus instead of a FAISS file: one that is larger than the machine, or that several machines search.

    manifest = build_store(address("milvus"), gallery, sets, run.path("index"))
    store = open_store(manifest, gallery, sets, run.path("index"))
    ranking = store.search(query, 20, {"group": "exam 7"})

An address is a file (`NAME.db`, of milvus-lite within this process; a cluster is the same code) or a
server (`http://host:19530`), whose token is read from `ENTREP_MILVUS_TOKEN` and written nowhere. A
collection is named by the fingerprint of the vectors, names, digests and groups in it, so that one of older
embeddings is never taken for theirs. It holds row numbers, vectors, and for every key that can be masked
the first row that has it: filters compare whole numbers, and no text of a user enters an expression.

All vectors are compared (FLAT), in the float32 of Milvus; `index.nearest` decides by exact products. A milvus-lite file is parsed by milvus-lite: open none that others could have written to.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from entrep_cli.errors import RunError, UsageError, first_line
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.ranking import Ranking
from entrep_cli.workspace import fingerprint

TOKEN = "ENTREP_MILVUS_TOKEN"
DEFAULT_FILE = "milvus.db"
MASKED_BY = ("image", "digest", "group")
_MOST_ANSWERS = 16_384  # Milvus' own limit for one query
_FLOATS_AT_ONCE = 2**20  # 4 MiB of the 64 that a message to Milvus may have
_SECONDS = 60.0
_SECONDS_TO_WRITE = 600.0  # milvus-lite writes its files while the caller waits


def address(store: str) -> str:
    """A checked `--store`: `milvus` is the file in the run's own index folder.

    Raises:
        UsageError: it is no address, or contains a password.
    """
    if store == "milvus":
        return DEFAULT_FILE
    if store.startswith(("http://", "https://")):
        try:
            parts = urlsplit(store)
            _, named = parts.port, parts.hostname
        except ValueError:
            named = None
        if not named:
            raise UsageError("--store is not the address of a server.", hint="--store http://HOST:19530")
        if parts.username is not None or parts.query or parts.fragment:
            raise UsageError("An address in --store has neither name nor password.", hint=f"put the token into ${TOKEN}")
        return store
    path = Path(store)
    if path.suffix != ".db" or "://" in store:
        raise UsageError(f"No store {store!r}.", hint="--store milvus, --store FILE.db or --store http://HOST:19530")
    return str(path.absolute())


class MilvusStore:
    """A collection that holds a gallery, open for searching.

    Args:
        client: a `pymilvus.MilvusClient`.
        collection: its name.
        gallery: whose rows it holds.
        where: the address, for messages.
    """

    def __init__(self, client: Any, collection: str, gallery: Embeddings, where: str) -> None:
        self.client, self.collection, self.gallery, self.where = client, collection, gallery, where

    def search(self, query: np.ndarray, k: int, masks: Mapping[str, str]) -> Ranking:
        """The k best rows for a query (1, D) without those that have one of its keys; float32 products as Milvus sums them.

        Args:
            masks: keys by column, of `MASKED_BY`; "" masks nothing.

        Raises:
            RunError: the store does not answer.
        """
        filters = []
        for key, value in masks.items():
            rows = np.flatnonzero(getattr(self.gallery.items, key) == value) if value else ()
            if len(rows):
                filters.append(f"{_field(key)} != {int(rows[0])}")
        with _translated(self.where):
            hits = self.client.search(
                self.collection,
                data=[np.asarray(query, np.float32)[0]],
                limit=min(k, _MOST_ANSWERS),
                filter=" and ".join(filters),
                search_params={"metric_type": "IP"},
                timeout=_SECONDS,
            )[0]
        rows, scores = np.array([int(hit["row"]) for hit in hits], np.int64), np.array([hit["distance"] for hit in hits], np.float32)
        order = np.lexsort((rows, -scores))
        return Ranking(rows[order][None], scores[order][None])


def build_store(uri: str, gallery: Embeddings, sets: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Put a gallery into a store; what the manifest of the index records of it.

    Args:
        uri: from `address`.
        sets: fingerprints of the sets in the gallery.
        folder: of a relative file.

    Raises:
        RunError: Milvus is not installed, cannot be reached, or refuses.
    """
    name = _collection(gallery, sets)
    if not _is_server(uri):
        path = folder / uri
        if path.exists() and not (path / "LOCK").is_file():
            raise RunError(
                "The file or folder of this name was not made by milvus-lite, and stays as it is.",
                where=path,
                hint="--store with another file",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
    with _connected(uri, folder) as client:
        client.drop_collection(name)  # what a build that was cut short has left
        _create(client, name, gallery.vectors.shape[1])
        columns = {_field(key): _first_rows(getattr(gallery.items, key)) for key in MASKED_BY}
        at_once = max(1, _FLOATS_AT_ONCE // gallery.vectors.shape[1])
        for start in range(0, len(gallery), at_once):
            vectors = gallery.vectors[start : start + at_once]
            rows = [
                {"row": start + i, "vector": vector, **{field: column[start + i] for field, column in columns.items()}}
                for i, vector in enumerate(vectors)
            ]
            client.insert(name, rows, timeout=_SECONDS_TO_WRITE)
        client.flush(name, timeout=_SECONDS_TO_WRITE)
    return {"uri": uri, "collection": name}


def open_store(store: Mapping[str, Any], gallery: Embeddings, sets: Mapping[str, str], folder: Path) -> MilvusStore:
    """The store of a manifest.

    Args:
        store: what `build_store` returned.
        gallery, sets: the run's embeddings now.

    Raises:
        RunError: it cannot be reached, or does not hold these embeddings.
    """
    name, uri = _collection(gallery, sets), str(store["uri"])
    if name != store["collection"]:
        raise RunError("The store is older than the embeddings.", where=_shown(uri, folder), hint=_hint(uri))
    if not _is_server(uri) and not (folder / uri).exists():
        raise RunError("The store of the index is gone.", where=_shown(uri, folder), hint=_hint(uri))
    with _connected(uri, folder, keep=True) as client:
        stored = 0
        if client.has_collection(name, timeout=_SECONDS):
            client.load_collection(name, timeout=_SECONDS_TO_WRITE)
            stored = client.query(name, filter="", output_fields=["count(*)"], timeout=_SECONDS)[0]["count(*)"]
        if stored != len(gallery):
            raise RunError(f"The store holds {stored} of {len(gallery)} images of the run.", where=_shown(uri, folder), hint=_hint(uri))
    return MilvusStore(client, name, gallery, _shown(uri, folder))


def drop_store(store: Mapping[str, Any], folder: Path) -> None:
    """Remove a collection that is not used any more, if the store can be reached."""
    uri = str(store.get("uri"))
    if _is_server(uri) or (folder / uri).exists():
        with contextlib.suppress(RunError), _connected(uri, folder) as client:
            client.drop_collection(str(store.get("collection")))


def _collection(gallery: Embeddings, sets: Mapping[str, str]) -> str:
    items = gallery.items
    return "entrep_" + fingerprint([sets, gallery.vectors.shape[1], list(zip(items.image, items.digest, items.group))])


def _create(client: Any, name: str, dimensions: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
    for key in MASKED_BY:
        schema.add_field(_field(key), DataType.INT64)
    params = client.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=params, consistency_level="Strong", timeout=_SECONDS)


def _field(key: str) -> str:
    return f"{key}_row"


def _first_rows(column: np.ndarray) -> list[int]:
    """For each key the first row that bears it; -1 for none."""
    first: dict[str, int] = {}
    return [first.setdefault(key, i) if key else -1 for i, key in enumerate(column)]


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _shown(uri: str, folder: Path) -> str:
    return uri if _is_server(uri) else str(folder / uri)


def _hint(uri: str) -> str:
    return f"`entrep index --store {'milvus' if uri == DEFAULT_FILE else uri}`"


@contextlib.contextmanager
def _connected(uri: str, folder: Path, keep: bool = False) -> Iterator[Any]:
    """A client; closed at the end, with `keep` only where something went wrong."""
    try:
        from pymilvus import MilvusClient

        if not _is_server(uri):
            import milvus_lite  # noqa: F401 - pymilvus would fail later, with less to say
    except ImportError as error:
        raise RunError(f"Milvus is not installed: {error}.", hint="pip install '.[milvus]', in the checkout") from error
    for name in ("pymilvus", "milvus_lite", "grpc"):  # they log tracebacks of what the error here says in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    where = _shown(uri, folder)
    with _translated(where):
        client = MilvusClient(uri=where, token=os.environ.get(TOKEN, "") if _is_server(uri) else "", timeout=_SECONDS)
        try:
            yield client
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                client.close()


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    """Errors of Milvus as a RunError."""
    import grpc  # with pymilvus, which lets some of its errors through
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, OSError) as error:
        said = error.details() if isinstance(error, grpc.Call) else getattr(error, "message", "")
        said = str(said or first_line(error)).strip().splitlines()[0]
        raise RunError(
            f"The store does not answer: {said.rstrip('.')}.",
            where=where,
            hint=f"start the server or correct the address (its token is ${TOKEN}); a file is open in one process at a time; "
            "`entrep index` builds an index without a store",
        ) from error
