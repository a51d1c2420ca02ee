"""The classes of a COCO data set: one list from the categories of every split, and what annotations call them.

A fault in what no annotation uses is harmless and left out with a word, Roboflow's grouping category first of all: a
project called fish with a class fish has the categories 0 and 1 of that name, and objects of the second only.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..detection_data import Categories
from ..findings import FindingLog
from .coco import CocoFile
from .faults import IdsByNumber, id_fault, plain_id, thing_flag
from .records import SplitRecords


def settle_category_ids(records: SplitRecords, known: Iterable[int | str]) -> None:
    """Replaces category ids that are known only as another kind of value, "3" for 3, and says so."""
    known = set(known)
    unknown = set(records.category_ids) - known
    if not unknown:
        return
    by_number = IdsByNumber(known)
    meant = {value: by_number.find(value) for value in unknown}
    for position, value in enumerate(records.category_ids):
        new = meant.get(value)
        if new is not None:
            records.category_ids[position] = new
            message = f"category_id {value!r} is read as {new!r}"
            records.fault("value-repaired", message, records.rows[position], records.object_ids[position], "warning")


def _ids(categories: list[Any]) -> set[int | str]:
    ids = [plain_id(category.get("id")) for category in categories if isinstance(category, dict)]
    return {value for value in ids if not id_fault(value)}


class Entry(NamedTuple):
    """A category as one file defines it."""

    split: str
    name: str


def merged_classes(files: Mapping[str, CocoFile], log: FindingLog) -> Categories:
    """Returns one class list of the files of several splits; ids that are written otherwise are settled first."""
    listed = {split: file.categories for split, file in files.items()}
    known = set().union(*(_ids(categories) for categories in listed.values()))
    for file in files.values():
        settle_category_ids(file.records, known)
    used = {split: set(file.records.category_ids) for split, file in files.items()}
    return merge_categories(listed, used, log)


def merge_categories(listed: dict[str, list[Any]], used: dict[str, set[int | str]], log: FindingLog) -> Categories:
    """Returns one class list from the categories of every split, ordered by id; contradictions go to the log.

    `used` are the ids that the annotations of each split have: what is wrong with any other is not worth an error.
    """

    def say(is_used: bool, code: str, message: str, split: str | None) -> None:
        if is_used:
            log.add(code, "error", message, split=split)
        else:
            log.add("category-left-out", "info", f"{message}; no annotation uses it", split=split)

    defined: dict[int | str, list[Entry]] = {}
    for split, categories in listed.items():
        for category in categories:
            fields = category if isinstance(category, dict) else {}
            category_id, name = plain_id(fields.get("id")), fields.get("name")
            name = "" if name is None else str(name).strip()
            if id_fault(category_id) or not name:
                message = f"a category is {str(category)[:80]}, expected an object with an id and a name"
                say(bool(id_fault(category_id)) or category_id in used[split], "category-malformed", message, split)
            else:
                defined.setdefault(category_id, []).append(Entry(split, name))
    if not defined:
        message = "the data set defines no categories; pass id2label={id in the data: name}"
        log.add("categories-missing", "error", message)
    chosen = {}
    for category_id, entries in defined.items():
        needed = [entry for entry in entries if category_id in used[entry.split]] or entries[:1]
        first = chosen[category_id] = needed[0]
        for entry in entries:
            if entry.name != first.name:
                here = entry.split == first.split
                message = f"category {category_id!r} is {entry.name!r} here and {first.name!r} "
                message += "before" if here else f"in split {first.split!r}"
                say(entry in needed, "category-id-duplicate" if here else "category-conflict", message, entry.split)
    return Categories.of(_distinct_names(chosen, set().union(*used.values()), log))


def settle_things(categories: Categories, files: Mapping[str, CocoFile], log: FindingLog) -> None:
    """Sets `is_thing` from `isthing` of the files' categories; what they do not tell goes to the log."""
    said: dict[int | str, set[Any]] = {}
    for file in files.values():
        for category in filter(lambda listed: isinstance(listed, dict), file.categories):
            known = id_fault(plain_id(category.get("id"))) is None
            told = said.setdefault(plain_id(category["id"]) if known else None, set())
            told.add(thing_flag(category.get("isthing")))
    used = set().union(*(file.records.category_ids for file in files.values()))
    tell_things(categories, said, used, log)


def tell_things(categories: Categories, said: Mapping[Any, set[Any]], used: set[int | str], log: FindingLog) -> None:
    """Sets `is_thing` from what was `said` of each id: {0} stuff, {1} a thing, anything else goes to the log."""
    categories.is_thing = []
    for category_id, name in zip(categories.source_ids, categories.names, strict=True):
        told = said.get(category_id, set())
        categories.is_thing.append(told != {0})
        if told not in ({0}, {1}):
            seen = " and ".join(sorted(map(str, told - {None}))) or "missing"
            message = (
                f"isthing of category {category_id!r} ({name}) is {seen}, expected 1 for a thing or 0 for stuff: "
            )
            if category_id in used:
                log.add("isthing-unknown", "error", f"{message}write it, or pass stuff=[names of the stuff classes]")
            else:
                log.add("isthing-unknown", "info", f"{message}taken as a thing; no segment is of it")


def _distinct_names(chosen: dict[int | str, Entry], used: set[int | str], log: FindingLog) -> dict[int | str, str]:
    """Returns the names by id; of categories of one name those that are used, or the last one where none is."""
    by_name: dict[str, list[int | str]] = {}
    for category_id, entry in chosen.items():
        by_name.setdefault(entry.name, []).append(category_id)
    names = {}
    for name, shared in by_name.items():
        needed = [category_id for category_id in shared if category_id in used] or shared[-1:]
        for category_id in shared:
            if category_id not in needed:
                message = (
                    f"category {category_id!r} has the name {name!r} of category {needed[0]!r}; no annotation uses it"
                )
                log.add("category-left-out", "info", message)
        names |= {category_id: name if len(needed) == 1 else f"{name} ({category_id})" for category_id in needed}
        if len(needed) > 1:
            message = (
                f"the name {name!r} belongs to the categories {needed}, and annotations use them: if they are one "
                "class, write one id for them in the file; if not, give them different names, there or in "
                "id2label={id: name}"
            )
            log.add("category-name-duplicate", "error", message)
    return names
