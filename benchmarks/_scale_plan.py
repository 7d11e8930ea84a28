"""What a build of many photographs in parts takes around tokens: its plan, a part, the merge.

All parts but the first hold drawn vectors.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from _scale_files import SIZE, write_photographs, write_train
from _scale_run import run_all

from featurestore import open_writer
from featurestore.format.spec import POOLED, STATS
from featurestore.parts.build import RECEIPT, Receipt, part_folder
from featurestore.parts.plan import STORE, PartPlan, load_plan
from featurestore.read.rows import ImageRows

PARTS = 512


def measure_plan(folder: Path, n_images: int) -> dict:
    data = folder / "data"
    write_train(data, write_photographs(data, n_images))
    place = folder / "plan"
    settings = [
        *("--backbone", "vit_demo_patch16_dinov3", "--image-size", 64, "--crop", "squash"),
        *("--views", 1, "--weights", "random", "--device", "cpu"),
        *("--tokens", "pooled", "--pooled-dtype", "float16", "--no-thumbs"),
    ]
    build = ["store", "build", "--from", place, "--part", 0]
    told = run_all(
        {
            "plan": ["store", "plan", "--data", data, "--parts", PARTS, "--out", place, *settings],
            "the first part": build,
            "a part that is there": build,  # reads the plan, and ends
        },
        folder,
    )
    plan = load_plan(place)
    for part in range(1, PARTS):
        _draw_part(plan, part)
    merge = {"merge": ["store", "merge", "--from", place, "--out", folder / "features.h5"]}
    return told | run_all(merge, folder)


def _draw_part(plan: PartPlan, part: int) -> None:
    """A finished part, as `store build` leaves it."""
    rng = np.random.default_rng(part)
    made = plan.folder / "drawn"
    made.mkdir()
    first, end = plan.bounds[part : part + 2]
    width = plan.spec.tokens.width
    facts = {"width": SIZE[0], "height": SIZE[1], "status": "ok"}
    with open_writer(made / STORE, plan.spec, plan.frame(first, end), lock=False) as writer:
        for image in writer.pending():
            vectors_6D = rng.normal(size=(1 + len(POOLED), width)).astype(np.float16)
            rows = ImageRows(
                cls_VTD=vectors_6D[:1, None],
                patches_VTPD=None,
                pooled_VT5D=vectors_6D[None, None, 1:],
                stats_VS=np.ones((1, len(STATS))),
                facts=facts | {"sha256": f"{first + image:064x}"},
            )
            writer.put(image, rows)
    receipt = Receipt(plan.id, part, end - first, [], 1.0, "drawn")
    (made / RECEIPT).write_text(json.dumps(asdict(receipt)))
    os.replace(made, part_folder(plan, part))
