"""Prints the scalars that TensorBoard finds under a folder: python reference/readers/read_events.py FOLDER.

JSON: {job: {tag: [[step, value], ...]}}, in the order of the events."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


root = Path(sys.argv[1])
print(json.dumps({str(path.parent.relative_to(root)): scalars(path.parent) for path in sorted(root.rglob("*tfevents*"))}))
