"""Patient, lesion, duplicate -> group: what must never stand on two sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def connected_components(keys: Iterable[Sequence[str]]) -> list[str]:
    """The name of each row's group, in order. Rows that share any key, directly or through others, share a group.

    `keys` holds for each row its keys, written as `kind:value`; `patient` and `lesion` last, other kinds are content
    hashes. A group is named by its smallest key of the most lasting kind it has, so the name, and with it the side
    of the split, stays when more images of the same patient arrive. A row needs at least one key.
    """
    rows = [list(row) for row in keys]
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in rows:
        for key in row:
            parent.setdefault(key, key)
        for key in row[1:]:
            parent[root(key)] = root(row[0])
    names: dict[str, str] = {}
    for key in parent:
        top = root(key)
        names[top] = min(names.get(top, key), key, key=_lasting)
    return [names[root(row[0])] for row in rows]


def _lasting(key: str) -> tuple[int, str]:
    kind = key.partition(":")[0]
    return ({"patient": 0, "lesion": 1}.get(kind, 2), key)
